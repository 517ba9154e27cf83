# shellcheck shell=bash disable=SC2034,SC2154
# A private RabbitMQ with its own epmd, cookie and data. Reads STATE, AMQP_NODE, AMQP_PORT,
# AMQP_MANAGEMENT_PORT, AMQP_DIST_PORT, EPMD_PORT and the AMQP_* secrets.

RABBITMQ_SERVER='/usr/lib/rabbitmq/bin/rabbitmq-server'

# A user's password as RabbitMQ stores it: base64(salt ‖ sha256(salt ‖ password)).
amqp_password_hash() {
  local salt=$1 digest
  digest=$({ printf '%b' "$(hex_escaped "$salt")" && printf '%s' "$2"; } | sha256sum | cut -d' ' -f1)
  printf '%b' "$(hex_escaped "$salt$digest")" | base64 -w 0
}

# Users and vhosts at boot, with the hash of each password in its place; `sluice-worker topology users` does
# the same, but there is none yet when RabbitMQ starts here. A node that imports definitions never creates
# `guest`. Exchanges, queues and policies are not here: `sluice-worker topology apply` declares them.
#
# An edge may hand over orders and nothing else. A worker keeps the topology, its limits among it
# (policies), and reads the queues; it sees nothing beside what is ours. The operator may do all.
amqp_definitions() {
  local text user password
  text=$(<"$ROOT/ops/rabbitmq/users.json")
  for user in EDGE WORKER OPERATOR; do
    password=AMQP_${user}_PASSWORD
    text=${text//HASH_OF_$user/$(amqp_password_hash "$AMQP_SALT" "${!password}")}
  done
  printf '%s\n' "$text"
}

amqp_config() {
  cat <<CONF
listeners.tcp.1 = 127.0.0.1:$AMQP_PORT
management.tcp.ip = 127.0.0.1
management.tcp.port = $AMQP_MANAGEMENT_PORT
load_definitions = $STATE/rabbitmq/definitions.json
loopback_users.guest = true
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
# Queue depths in the management UI and API are at most this old (ms).
collect_statistics_interval = 1000
# Samples as often: with the usual ones, every five seconds, rates are shown as 0 for four seconds of five.
management.sample_retention_policies.global.minute = 1
management.sample_retention_policies.global.hour = 60
management.sample_retention_policies.global.day = 1200
management.sample_retention_policies.basic.minute = 1
management.sample_retention_policies.basic.hour = 60
management.sample_retention_policies.detailed.10 = 1
log.console = true
log.console.level = info
log.file = false
CONF
}

# amqp_api PATH: the management API; the password never is on a command line.
amqp_api() {
  printf 'user = "operator:%s"\n' "$AMQP_OPERATOR_PASSWORD" |
    curl -sS -f --max-time 5 -K - "http://127.0.0.1:$AMQP_MANAGEMENT_PORT/api/$1"
}

amqp_ready() {
  port_open "$AMQP_PORT" && amqp_api "health/checks/port-listener/$AMQP_PORT" &&
    amqp_api health/checks/virtual-hosts
}

# Erlang would start a machine-wide epmd that outlives us: we start our own first.
epmd_start() {
  local program
  is_running epmd && return 0
  program=$(find_program epmd || need_program '/usr/lib/erlang/erts-*/bin/epmd')
  spawn epmd "$EPMD_PORT" "$program" -address 127.0.0.1 -port "$EPMD_PORT"
  # No server of its own: it is not among the pids that a drill may kill.
  rm -f "$STATE/pids/epmd.pid"
  wait_until_running 10 epmd port_open "$EPMD_PORT" ||
    fail_with_log epmd "epmd does not listen on port $EPMD_PORT"
}

rabbitmq_start() {
  local home=$STATE/rabbitmq print
  mkdir -p "$home/home" "$home/mnesia"
  amqp_definitions | write_private "$home/definitions.json"
  amqp_config | write_private "$home/rabbitmq.conf"
  printf '[rabbitmq_management].\n' | write_private "$home/enabled_plugins"
  : | write_private "$home/rabbitmq-env.conf"
  if [ ! -e "$home/home/.erlang.cookie" ]; then
    (umask 077 && printf '%s' "$AMQP_COOKIE" >"$home/home/.erlang.cookie")
    chmod 400 "$home/home/.erlang.cookie"
  fi
  print=$(digest_of "$home/definitions.json" "$home/rabbitmq.conf")-$EPMD_PORT-$AMQP_DIST_PORT
  if is_running rabbitmq && [ "$(fingerprint_of rabbitmq)" != "$print" ]; then rabbitmq_stop TERM; fi
  epmd_start
  is_running rabbitmq || rabbitmq_spawn "$print"
  wait_until_running 90 rabbitmq amqp_ready ||
    fail_with_log rabbitmq "RabbitMQ does not answer on port $AMQP_PORT"
}

# Erlang looks for each of a thousand modules in every directory of its path, so the node gets
# only the plugins that run: it is up a second sooner.
rabbitmq_plugins() {
  local source plugin dir=$STATE/rabbitmq/plugins
  source=$(need_program '/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins')
  rm -rf "$dir"
  mkdir -p "$dir"
  for plugin in "$source"/*; do
    case ${plugin##*/} in
      rabbitmq_prelaunch-* | rabbitmq_management* | rabbitmq_web_dispatch-*) ;;
      rabbitmq_* | amqp10_*) continue ;;
    esac
    ln -s "$plugin" "$dir/"
  done
}

rabbitmq_spawn() {
  local home=$STATE/rabbitmq no_spinning='+sbwt none +sbwtdcpu none +sbwtdio none'
  rabbitmq_plugins
  # RUNNING_UNDER_SYSTEMD makes the start script exec the Erlang VM instead of standing above it:
  # the recorded pid is the VM's. No busy waiting, for the cores are shared: it
  # took a seventh of what RabbitMQ takes at 500 orders a second.
  spawn rabbitmq "$1" env HOME="$home/home" RUNNING_UNDER_SYSTEMD=true \
    ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT="$EPMD_PORT" \
    RABBITMQ_NODENAME="$AMQP_NODE" RABBITMQ_DIST_PORT="$AMQP_DIST_PORT" \
    RABBITMQ_CONF_ENV_FILE="$home/rabbitmq-env.conf" \
    RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
    RABBITMQ_ADVANCED_CONFIG_FILE="$home/advanced.config" \
    RABBITMQ_PLUGINS_DIR="$home/plugins" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" \
    RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$STATE/logs" RABBITMQ_LOGS=- \
    RABBITMQ_PID_FILE="$home/vm.pid" \
    RABBITMQ_GENERATED_CONFIG_DIR="$home/config" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} $no_spinning" \
    "$(need_program "$RABBITMQ_SERVER")"
}

# rabbitmq_stop SIGNAL
rabbitmq_stop() {
  stop rabbitmq 30 "$1"
  stop epmd 5
}
