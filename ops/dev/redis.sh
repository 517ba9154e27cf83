# shellcheck shell=bash disable=SC2034,SC2154
# A private Redis, with the users and settings of ops/redis. Reads STATE, REDIS_PORT and the
# REDIS_*_PASSWORD secrets.

redis_users() {
  REDIS_EDGE_PASSWORD=$REDIS_EDGE_PASSWORD REDIS_WORKER_PASSWORD=$REDIS_WORKER_PASSWORD \
    REDIS_OPERATOR_PASSWORD=$REDIS_OPERATOR_PASSWORD REDIS_REPLICA_PASSWORD=$REDIS_REPLICA_PASSWORD \
    PATH="$(dirname "$(need_program redis-server)"):$PATH" sh "$ROOT/ops/redis/users.sh"
}

redis_config() {
  cat <<CONF
bind 127.0.0.1
port $REDIS_PORT
dir $STATE/redis
daemonize no
$(cat "$ROOT/ops/redis/redis.conf")
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
