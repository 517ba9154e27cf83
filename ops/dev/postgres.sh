# shellcheck shell=bash disable=SC2034,SC2154
# A private PostgreSQL. It refuses to run as root: then it runs in a user namespace that shows it
# an ordinary user, or, where there are none, as the user `postgres` with its data outside the
# checkout (which that user may not be able to reach). Reads STATE, DATABASE_PORT,
# DATABASE_DURABLE (on|off), DATABASE_CONNECTIONS and the DATABASE_*_PASSWORD secrets.

postgres_program() { need_program "/usr/lib/postgresql/*/bin/$1"; }

# Sets PG_AS (a command prefix) and PG_HOME (the directory that holds the data).
postgres_choose_user() {
  local uid gid
  PG_AS=() PG_HOME=$STATE/postgres
  [ "$(id -u)" = 0 ] || return 0
  # initdb looks the user up by name: it must exist.
  uid=$(id -u postgres 2>/dev/null || id -u nobody)
  gid=$(id -g postgres 2>/dev/null || id -g nobody)
  PG_AS=(unshare -U "--map-user=$uid" "--map-group=$gid")
  if [ ! -L "$STATE/postgres" ] && "${PG_AS[@]}" true 2>/dev/null; then return 0; fi
  PG_AS=(setpriv --reuid="$uid" --regid="$gid" --clear-groups)
  PG_HOME=/var/lib/sluice-dev-$(printf '%s' "$STATE" | sha256sum | cut -c1-12)
  install -d -m 700 -o "$uid" -g "$gid" "$PG_HOME"
  ln -sfn "$PG_HOME" "$STATE/postgres"
}

# Gives a file that we wrote to the server's user.
postgres_own() { [ ! -L "$STATE/postgres" ] || chown --reference="$PG_HOME" "$@"; }

postgres_config() {
  cat <<CONF
listen_addresses = '127.0.0.1'
port = $DATABASE_PORT
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = $DATABASE_CONNECTIONS
# DROP DATABASE waits for connections that have not said who they are.
authentication_timeout = 10s
shared_buffers = 256MB
fsync = $DATABASE_DURABLE
synchronous_commit = $DATABASE_DURABLE
full_page_writes = $DATABASE_DURABLE
max_wal_size = 1GB
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d '
CONF
}

postgres_create() {
  local pwfile=$PG_HOME/password
  [ -s "$PG_HOME/data/PG_VERSION" ] && [ -e "$PG_HOME/created" ] && return 0
  rm -rf "$PG_HOME/data"
  (umask 077 && printf '%s' "$DATABASE_ADMIN_PASSWORD" >"$pwfile")
  postgres_own "$pwfile"
  if ! (cd / && "${PG_AS[@]}" "$(postgres_program initdb)" -D "$PG_HOME/data" -U postgres \
    -A scram-sha-256 --pwfile="$pwfile" --encoding=UTF8 --locale=C.UTF-8 --no-sync) \
    </dev/null >>"$STATE/logs/postgres.log" 2>&1; then
    rm -f "$pwfile"
    fail_with_log postgres 'initdb failed'
  fi
  rm -f "$pwfile"
  : >"$PG_HOME/created"
}

# psql as the superuser; SQL on stdin.
postgres_psql() {
  PGPASSWORD=$DATABASE_ADMIN_PASSWORD "$(postgres_program psql)" -X -q -v ON_ERROR_STOP=1 \
    -h 127.0.0.1 -p "$DATABASE_PORT" -U postgres -d postgres "$@"
}

postgres_ready() { postgres_psql -c 'SELECT 1'; }

# The owner writes, the reader reads everything that is ever created, and cannot write by mistake.
postgres_roles() {
  postgres_psql <<SQL
SELECT format('CREATE ROLE %I LOGIN', name)
  FROM (VALUES ('sluice'), ('sluice_reader')) AS wanted (name)
 WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
ALTER ROLE sluice PASSWORD '$DATABASE_PASSWORD';
ALTER ROLE sluice_reader PASSWORD '$DATABASE_READER_PASSWORD';
ALTER ROLE sluice_reader SET default_transaction_read_only = on;
GRANT pg_read_all_data TO sluice_reader;
SELECT 'CREATE DATABASE sluice OWNER sluice'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'sluice') \gexec
SQL
}

postgres_try() {
  local data=$PG_HOME/data
  if ! is_running postgres; then
    postgres_forget_zombie "$data/postmaster.pid"
    (cd / && spawn postgres "$1" "${PG_AS[@]}" "$(postgres_program postgres)" -D "$data")
  fi
  wait_until_running 60 postgres postgres_ready
}

# A server that died but was not reaped still counts as alive to PostgreSQL, and where nobody reaps
# (a container's pid 1 may not) it would for ever. Its pid is replaced by one that cannot exist; the
# rest of the file, which guards the shared memory, stays.
postgres_forget_zombie() {
  local pid
  pid=$(head -n 1 "$1" 2>/dev/null) || return 0
  if [[ $pid =~ ^[0-9]+$ ]] && [ -e "/proc/$pid" ] && ! start_time_of "$pid" >/dev/null; then
    sed -i "1s/.*/$(cat /proc/sys/kernel/pid_max)/" "$1"
    postgres_own "$1"
  fi
}

postgres_start() {
  local data print
  postgres_choose_user
  mkdir -p "$PG_HOME" "$STATE/logs"
  postgres_create
  data=$PG_HOME/data
  postgres_config | write_private "$data/postgresql.conf"
  printf 'host all all 127.0.0.1/32 scram-sha-256\n' | write_private "$data/pg_hba.conf"
  postgres_own "$data/postgresql.conf" "$data/pg_hba.conf"
  print=$(digest_of "$data/postgresql.conf")
  if is_running postgres && [ "$(fingerprint_of postgres)" != "$print" ]; then stop postgres 20 INT; fi
  # What a killed server's children still hold, they let go within seconds.
  wait_until 20 postgres_try "$print" ||
    fail_with_log postgres "PostgreSQL does not answer on port $DATABASE_PORT"
  if [ ! -e "$PG_HOME/roles" ]; then
    postgres_roles >>"$STATE/logs/postgres.log" 2>&1 ||
      fail_with_log postgres 'the database roles could not be created'
    : >"$PG_HOME/roles"
  fi
}

# Deletes data that lies outside the state directory.
postgres_wipe() {
  local target
  target=$(readlink "$STATE/postgres" 2>/dev/null) || return 0
  case $target in /var/lib/sluice-dev-*) rm -rf "$target" ;; esac
}
