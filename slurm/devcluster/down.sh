#!/usr/bin/env bash
# down.sh [--purge] DIR: stop the cluster that up.sh started in DIR; with --purge, delete DIR, too.
#
# Ends the processes that DIR/run/*.pid name, and with each node's first process everything that ran on the node.
set -uo pipefail

PURGE=
if [ "${1:-}" = --purge ]; then PURGE=1; shift; fi
DIR=$(cd "${1:?usage: down.sh [--purge] DIR}" && pwd -P) || exit 1
if [ ! -f "$DIR/slurm.conf" ] || [ ! -d "$DIR/run" ]; then echo "down.sh: no cluster in $DIR" >&2; exit 1; fi
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

exec 9>"$DIR/run/up.lock"
flock 9
stop slurmctld # first, and gently: it saves its state
for suffix in .init.pid .pid; do
  for file in "$DIR"/run/c[0-9]*"$suffix"; do
    [ ! -e "$file" ] || stop "$(basename "$file" .pid)" KILL
  done
done
stop slurmdbd
stop mariadbd
stop munged
stop head KILL
watch=$(pid_of watch)
if [ "$watch" != "$PPID" ] && [ "$watch" != $$ ]; then stop watch; fi # it may be who calls
if [ -s "$DIR/run/made-local" ]; then rmdir "$(cat "$DIR/run/made-local")" 2>/dev/null; fi
rm -f "$DIR/run/made-local" "$DIR"/run/*.pid "$DIR"/run/*.up "$DIR"/run/*.self
if [ -n "$PURGE" ]; then rm -rf "$DIR"; fi
