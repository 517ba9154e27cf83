# shellcheck shell=bash disable=SC2034,SC2154
# Private RabbitMQ and PostgreSQL for tests, beside what `up` runs: other ports, other data, and
# nothing that need survive a power cut. Redis is started by each test for itself.

# Ports below the range that the kernel gives to outgoing connections.
choose_test_ports() {
  local base name
  load_values "$STATE/ports"
  [ -z "${EPMD_PORT:-}" ] || return 0
  base=$((20000 + RANDOM % 90 * 100))
  for name in AMQP_PORT AMQP_MANAGEMENT_PORT DATABASE_PORT AMQP_DIST_PORT EPMD_PORT; do
    base=$((base + 1))
    printf "%s='%s'\n" "$name" "$(port_free_from "$base")"
  done | write_private "$STATE/ports"
  load_values "$STATE/ports"
}

services_start() {
  local pids=() pid failed=0
  load_secrets
  choose_test_ports
  AMQP_NODE=sluice-test@localhost DATABASE_DURABLE=off DATABASE_CONNECTIONS=400
  redis_users | write_private "$STATE/users.acl"
  write_compose_env
  rabbitmq_start &
  pids+=($!)
  postgres_start &
  pids+=($!)
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

# Nothing here is worth a graceful stop, which takes RabbitMQ five seconds.
services_stop() {
  rabbitmq_stop KILL
  stop postgres 20 INT
}

services_exports() {
  cat <<ENV
export SLUICE_TEST_REDIS_SERVER='$(need_program redis-server)'
export SLUICE_TEST_REDIS_USERS='$STATE/users.acl'
export SLUICE_TEST_REDIS_PASSWORDS='edge=$REDIS_EDGE_PASSWORD worker=$REDIS_WORKER_PASSWORD operator=$REDIS_OPERATOR_PASSWORD replica=$REDIS_REPLICA_PASSWORD'
export SLUICE_TEST_AMQP_EDGE_URL='amqp://edge:$AMQP_EDGE_PASSWORD@127.0.0.1:$AMQP_PORT/sluice'
export SLUICE_TEST_AMQP_WORKER_URL='amqp://worker:$AMQP_WORKER_PASSWORD@127.0.0.1:$AMQP_PORT/sluice'
export SLUICE_TEST_AMQP_URL='amqp://operator:$AMQP_OPERATOR_PASSWORD@127.0.0.1:$AMQP_PORT/%2f'
export SLUICE_TEST_AMQP_MANAGEMENT_URL='http://operator:$AMQP_OPERATOR_PASSWORD@127.0.0.1:$AMQP_MANAGEMENT_PORT'
export SLUICE_TEST_POSTGRES_BIN='$(dirname "$(postgres_program postgres)")'
export SLUICE_TEST_DATABASE_URL='postgres://postgres:$DATABASE_ADMIN_PASSWORD@127.0.0.1:$DATABASE_PORT/postgres'
export SLUICE_TEST_COMPOSE_ENV='$STATE/compose.env'
export SLUICE_TEST_BIN='$TARGET/release'
ENV
}
