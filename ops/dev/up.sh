# shellcheck shell=bash disable=SC2034,SC2154
# up and down.

docker_answers() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

servers_missing() { [ -n "$(missing_packages "${SERVER_NEEDS[@]}")" ]; }

# Starts what is independent at the same time, beside the build.
servers_start() {
  local pids=() pid failed=0
  redis_start &
  pids+=($!)
  rabbitmq_start &
  pids+=($!)
  postgres_start &
  pids+=($!)
  build_programs || failed=1
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return "$failed"
}

command_up() {
  [ $# = 0 ] || die 'usage: ./dev up' 64
  lock_state
  if servers_missing && ! may_install && docker_answers; then
    compose_up
    return
  fi
  install_missing "${BUILD_NEEDS[@]}" "${SERVER_NEEDS[@]}"
  load_secrets
  choose_ports
  AMQP_NODE=sluice@localhost DATABASE_DURABLE=on DATABASE_CONNECTIONS=100
  mkdir -p "$STATE/logs"
  write_configuration
  step 'starting Redis, RabbitMQ and PostgreSQL'
  (servers_start) || exit 1
  link_programs
  step 'migrating, declaring queues'
  prepare_stores
  step 'starting the wardens, the worker and the edge'
  apps_start
  step 'opening the demo sale'
  demo_start
  print_hints
}

# Where nothing can be installed but a Docker engine answers. The ports and secrets are the same:
# compose.yaml reads them from the environment.
compose_up() {
  load_secrets
  choose_ports
  write_configuration
  : >"$STATE/compose"
  # Read inside the container by another user; it holds salted hashes, not passwords.
  amqp_definitions >"$STATE/definitions.json"
  chmod 644 "$STATE/definitions.json"
  step 'docker compose up'
  compose up -d --build || die 'docker compose failed'
  wait_until 300 edge_ready || die 'the edge is not ready: docker compose logs edge'
  demo_start
  print_hints
}

# Every port and secret as SLUICE_<NAME>, for compose.yaml to refer to.
compose() {
  local entry name
  export SLUICE_AMQP_DEFINITIONS=$STATE/definitions.json
  for entry in "${PORTS[@]}" "${SECRET_NAMES[@]}"; do
    name=${entry%% *}
    export "SLUICE_$name=${!name}"
  done
  docker compose "$@"
}

command_down() {
  local wipe=0
  case "$#:${1:-}" in
    0:) ;;
    1:--wipe) wipe=1 ;;
    *) die 'usage: ./dev down [--wipe]' 64 ;;
  esac
  [ -d "$STATE" ] || { say 'nothing is running'; return 0; }
  lock_state
  if [ -e "$STATE/compose" ]; then compose_down "$wipe"; fi
  stop edge 30
  stop worker 30
  stop warden-1 15
  stop warden-2 15
  rabbitmq_stop TERM
  stop postgres 20 INT
  stop redis 15
  if [ "$wipe" = 1 ]; then
    postgres_wipe
    rm -rf "$STATE"
    say 'stopped, and .run deleted'
  else
    say 'stopped (./dev down --wipe deletes the data too)'
  fi
}

compose_down() {
  load_secrets
  choose_ports
  if [ "$1" = 1 ]; then compose down -v; else compose down; fi
  rm -f "$STATE/compose"
}
