#!/usr/bin/env bash
# up.sh [options] DIR: start, or repair, a real multi-node Slurm on this machine; its files are below DIR.
#
#   --nodes N           compute nodes c1 to cN                                        (2)
#   --cpus N            CPUs that each claims to have; more than there are is fine    (16)
#   --gpus N            GPUs that each claims to have                                 (8)
#   --silent-seconds N  a node that is silent for two or three times as long is down  (20)
#   --local PATH        a folder that is another, empty one on every node
#   --accounting        with a database, so that sacct works
#   --exit-with PID     the cluster ends when that process does
#
# Needs root, and what install.sh installs. Prints shell code: eval "$(up.sh DIR)" puts DIR/bin first on PATH, and its
# sbatch, squeue, … talk to the cluster. Again with other options it is configured anew, and jobs go on.
set -Eeuo pipefail
trap 'echo "up.sh: failed in line $LINENO: $BASH_COMMAND" >&2' ERR
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES=2 CPUS=16 GPUS=8 SILENT_SECONDS=20 LOCAL='' ACCOUNTING='' EXIT_WITH='' DIR=''

fail() { echo "up.sh: $*" >&2; exit 1; }

number() { # OPTION VALUE LOWEST HIGHEST
  if [[ ! $2 =~ ^[0-9]{1,4}$ ]] || (($2 < $3 || $2 > $4)); then fail "$1: a number from $3 to $4, not $2"; fi
}

while [ $# -gt 0 ]; do
  case $1 in
    --nodes) number "$1" "${2-}" 1 200; NODES=$2; shift 2 ;;
    --cpus) number "$1" "${2-}" 1 1024; CPUS=$2; shift 2 ;;
    --gpus) number "$1" "${2-}" 0 16; GPUS=$2; shift 2 ;;
    --silent-seconds) number "$1" "${2-}" 1 9999; SILENT_SECONDS=$2; shift 2 ;;
    --local) LOCAL=${2:?--local: a path}; shift 2 ;;
    --accounting) ACCOUNTING=1; shift ;;
    --exit-with) EXIT_WITH=${2:?--exit-with: a process id}; shift 2 ;;
    -*) fail "unknown option $1; see the head of ${BASH_SOURCE[0]}" ;;
    *) [ -z "$DIR" ] || fail "one DIR only"; DIR=$1; shift ;;
  esac
done
[ -n "$DIR" ] || fail "usage: up.sh [options] DIR; see the head of ${BASH_SOURCE[0]}"
[ "$(id -u)" = 0 ] || fail "needs root, for namespaces and Slurm's daemons"
for program in /usr/sbin/slurmctld /usr/sbin/slurmd /usr/bin/sbatch /usr/sbin/munged /usr/sbin/ip; do
  [ -x "$program" ] || fail "$program is missing; run $HERE/install.sh"
done
DIR=$(realpath -m "$DIR")
# The path of a Unix socket has at most 107 characters; the longest here is DIR/spool/cNNN/cNNN_JOB.STEP.
[ ${#DIR} -le 60 ] || fail "$DIR is longer than 60 characters"
[[ $DIR$LOCAL =~ ^[A-Za-z0-9_./-]+$ ]] || fail "$DIR $LOCAL: only letters, digits and _ . / - can be in a path"
mkdir -p "$DIR"/{bin,inner,dev,etc/cgroup,log,munge,run,spool,state}
exec 9>"$DIR/run/up.lock" # of two that start one cluster, the second waits
flock 9

# shellcheck source=lib.sh
. "$HERE/lib.sh"
# shellcheck source=configuration.sh
. "$HERE/configuration.sh"
write_configuration
write_commands
if [ -n "$LOCAL" ] && [ ! -d "$LOCAL" ]; then
  mkdir -p "$LOCAL"
  echo "$LOCAL" >"$DIR/run/made-local"
fi

for file in "$DIR"/run/c*.init.pid; do # nodes that are not wanted any more
  name=$(basename "$file" .init.pid)
  if [ -e "$file" ] && [ "${name#c}" -gt "$NODES" ]; then
    stop "$name.init" KILL
    stop "$name" KILL
  fi
done
start_head
start_munged
if [ -n "$ACCOUNTING" ]; then
  # shellcheck source=accounting.sh
  . "$HERE/accounting.sh"
  start_mariadb
  start_slurmdbd
fi
if [ -n "$CHANGED" ] && alive slurmctld; then # with the new configuration; jobs run on
  stop slurmctld
  for k in $(seq "$NODES"); do
    if slurmd_runs "c$k"; then stop_slurmd "c$k" TERM; fi
  done
fi
start_slurmctld
for k in $(seq "$NODES"); do start_node "c$k"; done
for k in $(seq "$NODES"); do start_slurmd "c$k"; done
wait_for 60 all_nodes_ready || { tail -n 5 "$DIR"/log/*.log >&2; fail "the nodes did not become ready"; }

if [ -n "$EXIT_WITH" ] && ! alive watch; then
  # shellcheck disable=SC2016 # the inner bash expands it
  DIR=$DIR setsid bash -c '. "$1/lib.sh"; while start_time "$2" >/dev/null; do sleep 1; done
    exec bash "$1/down.sh" "$DIR"' _ "$HERE" "$EXIT_WITH" </dev/null >>"$DIR/log/watch.log" 2>&1 9>&- &
  remember watch $!
fi
cat <<SH
export SLURM_CONF=$DIR/slurm.conf
export PATH=$DIR/bin:\$PATH
SH
