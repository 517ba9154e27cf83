# shellcheck shell=bash disable=SC2034,SC2154
# A private Redis. Four users: the edge may run scripts but not load them, the worker may load
# them, the operator may only read, a replica may only follow. Reads STATE, REDIS_PORT and the
# REDIS_*_PASSWORD secrets.

redis_version_at_least() {
  local have
  have=$("$(need_program redis-server)" --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p')
  [ "$(printf '%s\n' "$1" "$have" | sort -V | head -n 1)" = "$1" ]
}

# redis_user NAME PASSWORD RULES…; the file holds the password's SHA-256 only.
redis_user() {
  local name=$1 hash
  hash=$(printf '%s' "$2" | sha256sum | cut -d' ' -f1)
  shift 2
  printf 'user %s on #%s %s\n' "$name" "$hash" "$*"
}

# A pattern to follow (PSUBSCRIBE) must be granted literally, beside the channels it matches.
redis_users() {
  local session pubsub strings
  session='+hello +auth +ping +echo +select +quit +reset +time'
  session+=' +client|id +client|getname +client|setname +client|info'
  # A subcommand that the server does not know would keep it from starting.
  if redis_version_at_least 7.2; then session+=' +client|setinfo'; fi
  pubsub='+publish +subscribe +unsubscribe +psubscribe +punsubscribe'
  strings='+get +mget +set +incr +incrby +exists +strlen +type'
  # Nobody can log in as `default`, but Redis replays its own AOF as that user: without its rights it
  # would refuse every transaction in the file and come back without what the scripts did.
  printf 'user default off resetpass ~* &* +@all\n'
  # @hash and @stream hold nothing that reaches beyond the named keys. No EVAL, no SCRIPT: only the
  # warden loads scripts, and a script that is gone must freeze the sale.
  redis_user edge "$REDIS_EDGE_PASSWORD" '~sluice:* &sluice:* &sluice:sale:* -@all' \
    "$session $pubsub $strings +@hash +@stream +@transaction +evalsha"
  redis_user worker "$REDIS_WORKER_PASSWORD" '~sluice:* &sluice:* &sluice:sale:* -@all' \
    "$session $pubsub +@read +@write +@keyspace +@transaction -@dangerous" \
    '+evalsha +script|load +script|exists +config|get +info +role +wait'
  redis_user operator "$REDIS_OPERATOR_PASSWORD" '%R~* &* -@all' \
    "$session +@read -@dangerous +keys +subscribe +unsubscribe +psubscribe +punsubscribe" \
    '+info +config|get +script|exists +role +lastsave +slowlog|get +slowlog|len +client|list'
  redis_user replica "$REDIS_REPLICA_PASSWORD" '-@all +psync +replconf +ping'
}

redis_config() {
  cat <<CONF
bind 127.0.0.1
port $REDIS_PORT
dir $STATE/redis
daemonize no
# What was answered is on disk: a sale opens only on appendfsync always and noeviction.
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
maxclients 4096
$(redis_users)
CONF
}

# redis_cli USER PASSWORD ARGS…
redis_cli() {
  local user=$1 password=$2
  shift 2
  REDISCLI_AUTH=$password "$(need_program redis-cli)" -h 127.0.0.1 -p "$REDIS_PORT" \
    --user "$user" --no-auth-warning "$@"
}

redis_ready() {
  [ "$(redis_cli operator "$REDIS_OPERATOR_PASSWORD" ping 2>/dev/null)" = PONG ]
}

redis_start() {
  local server print
  server=$(need_program redis-server)
  mkdir -p "$STATE/redis"
  redis_config | write_private "$STATE/redis/redis.conf"
  print=$(digest_of "$STATE/redis/redis.conf")
  if is_running redis && [ "$(fingerprint_of redis)" != "$print" ]; then stop redis; fi
  if ! is_running redis; then
    spawn redis "$print" "$server" "$STATE/redis/redis.conf"
  fi
  wait_until_running 30 redis redis_ready ||
    fail_with_log redis "Redis does not answer on port $REDIS_PORT"
}
