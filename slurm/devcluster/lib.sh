# shellcheck shell=bash
# The processes, nodes and faults of the cluster in $DIR; sourced by up.sh, down.sh and DIR/bin/{node,on-node}.

: "${DIR:?the folder of the cluster}"
SUBNET=10.77.0
CLEAN_ENVIRONMENT=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "SLURM_CONF=$DIR/slurm.conf")

# ---- processes. DIR/run/NAME.pid has "PID STARTTIME": a process id that came again is never taken for ours.

start_time() { # PID; fails where the process is gone, or dead and not waited for
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -ra fields <<<"${stat##*) }"
  [ "${fields[0]}" != Z ] || return 1
  echo "${fields[19]}"
}

remember() { # NAME PID
  local time
  time=$(start_time "$2") || return 1
  echo "$2 $time" >"$DIR/run/$1.pid.new"
  mv "$DIR/run/$1.pid.new" "$DIR/run/$1.pid"
}

pid_of() { # NAME
  local pid time
  read -r pid time 2>/dev/null <"$DIR/run/$1.pid" || return 1
  [ "$(start_time "$pid")" = "$time" ] || return 1
  echo "$pid"
}

alive() { pid_of "$1" >/dev/null; }

gone() { ! alive "$1"; }

wait_for() { # SECONDS COMMAND...: until the command succeeds
  local tries=$(($1 * 20))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.05
  done
}

stop() { # NAME [SIGNAL]: send it, wait, then kill
  local pid
  if pid=$(pid_of "$1"); then
    kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
    if ! wait_for 8 gone "$1" && pid=$(pid_of "$1"); then
      kill -s KILL "$pid" 2>/dev/null || true
      wait_for 5 gone "$1" || true
    fi
  fi
  rm -f "$DIR/run/$1.pid"
}

show_log() { tail -n 5 "$DIR/log/$1" >&2; }

start_daemon() { # NAME COMMAND...: in a session of its own, with none of our descriptors
  local name=$1
  shift
  setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 9>&- &
  remember "$name" $! || { show_log "$name.out"; return 1; }
}

# ---- machines: namespaces of network, host name and mounts; a node has one of processes, too.

in_head() { nsenter -t "$(pid_of head)" -n -u -m -- "$@"; }

in_node() { # NODE FOLDER COMMAND...
  local pid
  pid=$(pid_of "$1.init") || { echo "$1 is down" >&2; return 1; }
  nsenter -t "$pid" -n -u -m -p --wdns="$2" -- "${@:3}"
}

become() { # head|NODE COMMAND...: this process goes on there, in the same folder
  local pid node=$1 inside=(-n -u -m)
  shift
  if [ "$node" = head ]; then
    pid=$(pid_of head) || { echo "head is down" >&2; return 1; }
  else
    pid=$(pid_of "$node.init") || { echo "$node is down" >&2; return 1; }
    inside+=(-p)
  fi
  exec nsenter -t "$pid" "${inside[@]}" --wdns="$PWD" -- "$@"
}

machine_script() { # MACHINE: what its first process does
  local file
  echo "set -e; hostname $1"
  for file in hosts resolv.conf nsswitch.conf; do
    echo "[ ! -e /etc/$file ] || mount --bind $DIR/etc/$file /etc/$file"
  done
  # /sys/class/net shows the network that /sys was mounted in; what is mounted below it comes along.
  echo "{ mount --rbind /sys/fs/cgroup $DIR/etc/cgroup; mount -t sysfs sysfs /sys
          mount --rbind $DIR/etc/cgroup /sys/fs/cgroup; umount -l $DIR/etc/cgroup; } 2>/dev/null || true"
  echo "mount --bind $DIR/inner $DIR/bin"
  if [ -n "$LOCAL" ]; then
    mkdir -p "$DIR/local/$1"
    chmod 1777 "$DIR/local/$1"
    echo "mount --bind $DIR/local/$1 $LOCAL"
  fi
  echo "ip link set lo up; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 2>/dev/null || true"
}

start_head() {
  ! alive head || return 0
  rm -f "$DIR/run/head.up"
  start_daemon head unshare --net --uts --mount -- "${CLEAN_ENVIRONMENT[@]}" bash -c "$(machine_script head)
    ip link add br0 type bridge; ip addr add $SUBNET.1/24 dev br0; ip link set br0 up
    touch $DIR/run/head.up; exec sleep infinity"
  wait_for 10 test -e "$DIR/run/head.up" || { show_log head.out; return 1; }
}

start_node() { # NODE: the machine, without slurmd
  local node=$1 unshare children
  if alive "$node" && alive "$node.init"; then return 0; fi
  stop "$node" KILL
  rm -f "$DIR/run/$node.up"
  # Its first process adopts, and waits for, what slurmd leaves behind; with it everything on the node ends.
  start_daemon "$node" unshare --net --uts --mount --pid --fork --kill-child --mount-proc -- \
    "${CLEAN_ENVIRONMENT[@]}" bash -c "$(machine_script "$node")
    touch $DIR/run/$node.up; set +e; trap 'exit 0' TERM; while :; do sleep 1000000 & wait \$!; done"
  wait_for 10 test -e "$DIR/run/$node.up" || { show_log "$node.out"; return 1; }
  unshare=$(pid_of "$node")
  children=$(cat "/proc/$unshare/task/$unshare/children")
  local init=${children%% *}
  remember "$node.init" "$init"
  in_head ip link del "v$node" 2>/dev/null || true
  in_head ip link add "v$node" type veth peer name eth0 netns "$init"
  in_head ip link set "v$node" master br0 up
  nsenter -t "$init" -n -- ip addr add "$SUBNET.$((10 + ${node#c}))/24" dev eth0
  nsenter -t "$init" -n -- ip link set eth0 up
  nsenter -t "$init" -n -- ip route add default via "$SUBNET.1"
}

# ---- daemons

start_munged() {
  local folder=$DIR/munge
  ! alive munged || return 0
  chmod 755 "$folder"
  [ -s "$folder/key" ] || (umask 077 && dd if=/dev/urandom of="$folder/key" bs=1024 count=1 status=none)
  chmod 600 "$folder/key"
  rm -f "$folder/socket" "$folder/socket.lock"
  start_daemon munged nsenter -t "$(pid_of head)" -n -u -m -- "${CLEAN_ENVIRONMENT[@]}" munged --foreground --force \
    --key-file="$folder/key" --socket="$folder/socket" --seed-file="$folder/seed" --pid-file="$folder/pid" \
    --log-file="$folder/log"
  wait_for 10 test -S "$folder/socket" || { show_log munged.out; return 1; }
}

controller_answers() { in_head "${CLEAN_ENVIRONMENT[@]}" scontrol ping 2>/dev/null | grep -q 'is UP'; }

controller_decided() { gone slurmctld || controller_answers; }

start_slurmctld() {
  ! alive slurmctld || return 0
  start_daemon slurmctld nsenter -t "$(pid_of head)" -n -u -m --wdns="$DIR/state" -- \
    "${CLEAN_ENVIRONMENT[@]}" slurmctld -D
  if ! wait_for 15 controller_decided || gone slurmctld; then show_log slurmctld.out; return 1; fi
}

slurmd_pid() { in_node "$1" / cat "$DIR/run/slurmd-$1.self" 2>/dev/null; } # as the node counts

slurmd_runs() {
  local pid
  pid=$(slurmd_pid "$1") && [ -n "$pid" ] && in_node "$1" / kill -0 "$pid" 2>/dev/null
}

slurmd_gone() { ! slurmd_runs "$1"; }

start_slurmd() { # NODE
  ! slurmd_runs "$1" || return 0
  rm -f "$DIR/run/slurmd-$1.self"
  mkdir -p "$DIR/spool/$1"
  in_node "$1" "$DIR/spool/$1" "${CLEAN_ENVIRONMENT[@]}" slurmd -N "$1" \
    </dev/null >>"$DIR/log/slurmd-$1.out" 2>&1 9>&- || { show_log "slurmd-$1.out"; return 1; }
}

stop_slurmd() { # NODE SIGNAL
  local pid
  pid=$(slurmd_pid "$1") && in_node "$1" / kill -s "$2" "$pid"
  wait_for 10 slurmd_gone "$1"
}

all_nodes_ready() {
  local states
  states=$(in_head "${CLEAN_ENVIRONMENT[@]}" sinfo -h -N -p main -o '%N %T' 2>/dev/null) || return 1
  [ "$(grep -cE ' (idle|mixed|allocated)$' <<<"$states")" = "$NODES" ]
}

# ---- faults

act_on_node() { # ACTION NODE
  local pid
  case $1 in
    crash) # the power fails: every process of the node ends, nobody is told
      pid=$(pid_of "$2.init") && kill -s KILL "$pid"
      wait_for 10 gone "$2" || true
      in_head ip link del "v$2" 2>/dev/null || true
      ;;
    boot) start_node "$2" && start_slurmd "$2" ;;
    cut) in_head ip link set "v$2" down ;; # off the network; its processes live on
    heal) in_head ip link set "v$2" up ;;
    stop-slurmd) stop_slurmd "$2" TERM ;;
    kill-slurmd) stop_slurmd "$2" KILL ;;
    start-slurmd) start_slurmd "$2" ;;
    *) echo "node: crash, boot, cut, heal, stop-slurmd, kill-slurmd or start-slurmd, not $1" >&2; return 2 ;;
  esac
}
