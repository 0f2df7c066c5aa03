# shellcheck shell=bash
# MariaDB and slurmdbd, for `sacct`, both on head; sourced by up.sh.

database_answers() { gone mariadbd || in_head bash -c ': </dev/tcp/127.0.0.1/3306' 2>/dev/null; }

slurmdbd_answers() { gone slurmdbd || in_head "${CLEAN_ENVIRONMENT[@]}" sacctmgr -n show cluster >/dev/null 2>&1; }

start_mariadb() {
  ! alive mariadbd || return 0
  mkdir -p "$DIR/db"
  [ -d "$DIR/db/data/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$DIR/db/data" --skip-test-db \
    --auth-root-authentication-method=normal --skip-name-resolve --innodb-log-file-size=8M \
    >"$DIR/log/mariadb-install.out" 2>&1 || { show_log mariadb-install.out; return 1; }
  start_daemon mariadbd nsenter -t "$(pid_of head)" -n -u -m -- "${CLEAN_ENVIRONMENT[@]}" mariadbd --no-defaults \
    --user=root --datadir="$DIR/db/data" --socket="$DIR/db/sock" --pid-file="$DIR/db/pid" --bind-address=127.0.0.1 \
    --port=3306 --skip-grant-tables --skip-name-resolve --skip-log-bin --innodb-buffer-pool-size=32M \
    --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --max-connections=50
  if ! wait_for 20 database_answers || gone mariadbd; then show_log mariadbd.out; return 1; fi
}

start_slurmdbd() {
  ! alive slurmdbd || return 0
  (umask 077 && cat >"$DIR/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
DbdHost=head
DbdAddr=$SUBNET.1
DbdPort=6819
SlurmUser=root
PidFile=$DIR/run/slurmdbd.self
LogFile=$DIR/log/slurmdbd.log
DebugLevel=info
PluginDir=$(dirname "$(ls /usr/lib/*/slurm*/auth_munge.so)")
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=slurm
StorageLoc=slurm_acct
CommitDelay=1
CONF
  start_daemon slurmdbd nsenter -t "$(pid_of head)" -n -u -m -- "${CLEAN_ENVIRONMENT[@]}" slurmdbd -D
  if ! wait_for 30 slurmdbd_answers || gone slurmdbd; then show_log slurmdbd.out; return 1; fi
  in_head "${CLEAN_ENVIRONMENT[@]}" sacctmgr -i add cluster dev >/dev/null 2>&1 || true # it is there already
}
