#!/usr/bin/env bash
# ray-node.sh head|worker: be a node of a Ray cluster, until it ends. In the images it is called ray-node.
#
# Only who has the token in the file RAY_AUTH_TOKEN_PATH may use the cluster; the head makes it, where there is none, and
# the workers, who share the file, wait for it. RAY_HEAD is the name of the head.
set -euo pipefail
umask 077
: "${RAY_AUTH_TOKEN_PATH:?the file of the token}"
export RAY_AUTH_MODE=token
head=${RAY_HEAD:-head}

case ${1:-} in
  head)
    if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
      od --address-radix=n --format=x1 --read-bytes=32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH.new"
      mv "$RAY_AUTH_TOKEN_PATH.new" "$RAY_AUTH_TOKEN_PATH" # workers see all of it or nothing
    fi
    # Outside of the container the dashboard is where compose.yaml publishes it: on this machine only.
    exec ray start --head --block --node-ip-address="$head" --port=6379 --dashboard-host=0.0.0.0
    ;;
  worker)
    for _ in $(seq 600); do
      [ ! -s "$RAY_AUTH_TOKEN_PATH" ] || break
      sleep 0.1
    done
    [ -s "$RAY_AUTH_TOKEN_PATH" ] || { echo "ray-node: no token in $RAY_AUTH_TOKEN_PATH after 60 s" >&2; exit 1; }
    exec ray start --block --address="$head:6379"
    ;;
  *)
    echo "usage: ray-node head|worker" >&2
    exit 2
    ;;
esac
