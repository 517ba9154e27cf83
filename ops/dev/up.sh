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

can_install() { command -v apt-get >/dev/null && may_install; }

# wants_docker [--docker]: because it is asked for, because it was there the last time, or because servers
# are missing that cannot be installed, and a Docker engine answers.
wants_docker() {
  if [ "${1:-}" = --docker ]; then
    docker_answers || die 'no Docker engine answers (docker info)'
    return 0
  fi
  [ ! -e "$STATE/compose" ] || return 0
  servers_missing && ! can_install && docker_answers
}

command_up() {
  case "$#:${1:-}" in
    0: | 1:--docker) ;;
    *) die 'usage: ./dev up [--docker]' 64 ;;
  esac
  lock_state
  if wants_docker "$@"; then
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

# Everything in containers. The ports and secrets are the same.
compose_up() {
  find_program curl >/dev/null || die 'curl is not installed'
  # They run beside each other on the same ports.
  if is_running edge || is_running redis; then die 'it runs without Docker: ./dev down first'; fi
  load_secrets
  # What listens on the ports of containers that run is no stranger.
  if [ -e "$STATE/compose" ]; then load_values "$STATE/ports"; else choose_ports; fi
  write_configuration
  write_compose_env
  link_compose_env
  : >"$STATE/compose"
  step 'docker compose up'
  compose up -d --build || die 'docker compose failed'
  wait_until 300 edge_ready || die 'the edge is not ready: docker compose logs edge-1 warden-1'
  demo_start
  print_compose_hints
}

compose() { docker compose --project-directory "$ROOT" --env-file "$STATE/compose.env" "$@"; }

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
  if [ "$1" = 1 ]; then
    compose down -v
    unlink_compose_env
  else
    compose down
  fi
  rm -f "$STATE/compose"
}
