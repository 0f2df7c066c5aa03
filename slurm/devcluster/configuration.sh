# shellcheck shell=bash
# The files that Slurm and the machines of the cluster in $DIR read; sourced by up.sh.

write_network_files() {
  local k
  {
    echo "127.0.0.1 localhost"
    echo "$SUBNET.1 head"
    for k in $(seq "$NODES"); do echo "$SUBNET.$((10 + k)) c$k"; done
    # Names of IPv4 peers of IPv6 sockets: torch's store warns of each that is not found.
    echo "::ffff:$SUBNET.1 head.mapped"
    for k in $(seq "$NODES"); do echo "::ffff:$SUBNET.$((10 + k)) c$k.mapped"; done
  } >"$DIR/etc/hosts"
  : >"$DIR/etc/resolv.conf" # nothing inside asks a name server
  printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' >"$DIR/etc/nsswitch.conf"
}

# GPUs are null devices: Slurm takes character devices only, and without any it sets no CUDA_VISIBLE_DEVICES.
write_gres_conf() { # FILE
  local k device
  : >"$1"
  [ "$GPUS" -gt 0 ] || return 0
  for k in $(seq 0 $((GPUS - 1))); do
    device=$DIR/dev/nvidia$k
    [ -c "$device" ] || mknod "$device" c 1 3 || { echo "up.sh: cannot make the device $device" >&2; return 1; }
  done
  printf 'AutoDetect=off\nName=gpu File=%s\n' "$DIR/dev/nvidia[0-$((GPUS - 1))]" >"$1"
}

accounting_lines() {
  if [ -z "$ACCOUNTING" ]; then
    echo "AccountingStorageType=accounting_storage/none"
    return
  fi
  echo "AccountingStorageType=accounting_storage/slurmdbd"
  echo "AccountingStorageHost=head"
  echo "AccountingStoragePort=6819"
  echo "AccountingStoragePass=$DIR/munge/socket"
  [ "$GPUS" = 0 ] || echo "AccountingStorageTRES=gres/gpu"
  echo "JobAcctGatherType=jobacct_gather/linux"
  echo "JobAcctGatherFrequency=2"
}

node_lines() {
  local k gres=
  [ "$GPUS" = 0 ] || gres=" Gres=gpu:$GPUS"
  echo "NodeName=DEFAULT CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1" \
    "RealMemory=65536$gres State=UNKNOWN"
  for k in $(seq "$NODES"); do echo "NodeName=c$k NodeAddr=$SUBNET.$((10 + k))"; done
}

write_slurm_conf() { # FILE
  local names="c[1-$NODES]" plugins
  [ "$NODES" -gt 1 ] || names=c1
  plugins=$(dirname "$(ls /usr/lib/*/slurm*/auth_munge.so)")
  cat >"$1" <<CONF
ClusterName=dev
SlurmctldHost=head($SUBNET.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again; 120 s by default.
AuthInfo=socket=$DIR/munge/socket,cred_expire=5
CryptoType=crypto/munge
PluginDir=$plugins
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.self
SlurmdPidFile=$DIR/run/slurmd-%n.self
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
SlurmctldPort=6817
SlurmdPort=6818
MailProg=/bin/true

# No control groups and no binding, so that nodes may claim more than this machine has.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
$([ "$GPUS" = 0 ] || echo GresTypes=gpu)

# Finished jobs stay visible to squeue and scontrol for a day; \`sacct -c\` reads their file.
MinJobAge=86400
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.txt
$(accounting_lines)

# Everything quick.
ReturnToService=2
SlurmdTimeout=$SILENT_SECONDS
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
InactiveLimit=0
KillWait=5
WaitTime=0
UnkillableStepTimeout=60
HealthCheckInterval=0
TreeWidth=200
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=0,bf_continue
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
# Without this a job that asks for more than there is would wait for ever.
EnforcePartLimits=ALL

$(node_lines)
PartitionName=main Nodes=$names Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=$names MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
CONF
}

write_configuration() { # sets CHANGED where Slurm's files are others than before
  local file
  CHANGED=
  write_network_files
  write_gres_conf "$DIR/gres.conf.new"
  write_slurm_conf "$DIR/slurm.conf.new"
  : >"$DIR/plugstack.conf"
  for file in slurm.conf gres.conf; do
    # shellcheck disable=SC2034 # up.sh asks for it
    cmp -s "$DIR/$file.new" "$DIR/$file" || CHANGED=1
    mv "$DIR/$file.new" "$DIR/$file"
  done
}

# DIR/bin, outside, enters head's namespaces; inside those, DIR/inner lies over it, so that a job's PATH works, too.
write_commands() {
  local command
  for command in sbatch squeue scontrol sinfo srun salloc scancel sacct sacctmgr sattach sbcast sdiag sprio sreport \
    sshare sstat strigger; do
    [ -x "/usr/bin/$command" ] || continue
    ln -sfn "/usr/bin/$command" "$DIR/inner/$command"
    cat >"$DIR/bin/$command" <<COMMAND
#!/bin/sh
read -r pid _ <'$DIR/run/head.pid' || exit 1
export SLURM_CONF='$DIR/slurm.conf'
exec nsenter -t "\$pid" -n -u -m --wdns="\$PWD" -- /usr/bin/$command "\$@"
COMMAND
    chmod 755 "$DIR/bin/$command"
  done
  cat >"$DIR/bin/on-node" <<COMMAND
#!/usr/bin/env bash
# on-node head|cK COMMAND...: run a command there, like ssh, in the same folder and environment
set -eu
DIR='$DIR' LOCAL='$LOCAL' NODES=$NODES
. '$HERE/lib.sh'
become "\$@"
COMMAND
  cat >"$DIR/bin/node" <<COMMAND
#!/usr/bin/env bash
# node crash|boot|cut|heal|stop-slurmd|kill-slurmd|start-slurmd cK: make a fault, or undo it
set -eu
DIR='$DIR' LOCAL='$LOCAL' NODES=$NODES
. '$HERE/lib.sh'
act_on_node "\$@"
COMMAND
  chmod 755 "$DIR/bin/on-node" "$DIR/bin/node"
}
