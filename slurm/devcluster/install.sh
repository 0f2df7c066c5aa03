#!/usr/bin/env bash
# install.sh: install what the development cluster and the tests of scripts need and this machine lacks.
#
# Debian and Ubuntu, as root. The packages' own daemons are never started. Where nothing is missing, nothing is done.
set -euo pipefail

NEEDED=(slurmctld:/usr/sbin/slurmctld slurmd:/usr/sbin/slurmd slurm-client:/usr/bin/sbatch munge:/usr/sbin/munged
  iproute2:/usr/sbin/ip shellcheck:/usr/bin/shellcheck
  # for up.sh --accounting; slurmdbd brings its plugin
  slurmdbd:/usr/sbin/slurmdbd mariadb-server-core:/usr/sbin/mariadbd mariadb-client-core:/usr/bin/my_print_defaults)

MISSING=()
for each in "${NEEDED[@]}"; do
  [ -x "${each#*:}" ] || MISSING+=("${each%%:*}")
done
[ ${#MISSING[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "install.sh: missing: ${MISSING[*]}; installing them needs root and apt-get" >&2
  exit 1
fi

echo "install.sh: installing ${MISSING[*]}" >&2
LOG=$(mktemp)
POLICY=/usr/sbin/policy-rc.d
if [ -e "$POLICY" ]; then POLICY=; fi
trap 'rm -f "$LOG" ${POLICY:+"$POLICY"}' EXIT
if [ -n "$POLICY" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$POLICY" # asked by packages before they start a daemon: no
  chmod 755 "$POLICY"
fi

get() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$LOG" 2>&1; }
if ! get install -y --no-install-recommends "${MISSING[@]}"; then
  if ! { get update && get install -y --no-install-recommends "${MISSING[@]}"; }; then
    tail -n 20 "$LOG" >&2
    exit 1
  fi
fi
