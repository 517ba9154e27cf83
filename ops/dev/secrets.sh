# shellcheck shell=bash disable=SC2034,SC2154
# Secrets and ports: chosen once per state directory, then kept.

SECRET_NAMES=(
  ADMIN_TOKEN JWT_SECRET ADMIN_JWT_SECRET TOKEN_SECRET PAYMENT_SECRET EDGE_SECRET RECEIPT_SEED
  REDIS_EDGE_PASSWORD REDIS_WORKER_PASSWORD REDIS_OPERATOR_PASSWORD REDIS_REPLICA_PASSWORD
  AMQP_EDGE_PASSWORD AMQP_WORKER_PASSWORD AMQP_OPERATOR_PASSWORD AMQP_COOKIE
  DATABASE_PASSWORD DATABASE_READER_PASSWORD DATABASE_ADMIN_PASSWORD
)

# Loads NAME='value' lines without running them as a program.
load_values() {
  local line
  [ -e "$1" ] || return 0
  while IFS= read -r line; do
    if [[ $line =~ ^([A-Z][A-Z0-9_]*)=\'([^\']*)\'$ ]]; then
      printf -v "${BASH_REMATCH[1]}" '%s' "${BASH_REMATCH[2]}"
    fi
  done <"$1"
}

# Generates each secret that the file does not have yet.
load_secrets() {
  local name file=$STATE/secrets
  (umask 077 && mkdir -p "$STATE" && touch "$file")
  load_values "$file"
  for name in "${SECRET_NAMES[@]}"; do
    if [ -z "${!name:-}" ]; then
      case $name in
        *_SEED) printf -v "$name" '%s' "$(random_seed)" ;;
        *) printf -v "$name" '%s' "$(random_hex)" ;;
      esac
      printf "%s='%s'\n" "$name" "${!name}" >>"$file"
    fi
  done
  if [ -z "${AMQP_SALT:-}" ]; then
    AMQP_SALT=$(random_hex 4)
    printf "AMQP_SALT='%s'\n" "$AMQP_SALT" >>"$file"
  fi
}

# name of the port, process that listens on it, default, may it move at the first start?
PORTS=(
  'EDGE_PORT edge 8080 fixed'
  'EDGE_ADMIN_PORT edge 8090 moves'
  'API_PORT worker 8091 moves'
  'REDIS_PORT redis 6480 moves'
  'AMQP_PORT rabbitmq 5680 moves'
  'AMQP_MANAGEMENT_PORT rabbitmq 15680 moves'
  'DATABASE_PORT postgres 5480 moves'
  'AMQP_DIST_PORT rabbitmq 25680 moves'
  'EPMD_PORT epmd 4380 moves'
)

# A port is what SLUICE_<NAME> says, else what was chosen before, else the default, which moves
# up when another program has it (the edge's does not: it is what people type).
choose_ports() {
  local entry name process port moves variable file=$STATE/ports
  local -A kept=() chosen=()
  load_kept_ports "$file"
  for entry in "${PORTS[@]}"; do
    read -r name process port moves <<<"$entry"
    variable=SLUICE_$name
    if [ -n "${!variable:-}" ]; then
      port=${!variable} moves=fixed
      is_port "$port" || die "$variable=$port is no port" 64
    elif [ -n "${kept[$name]:-}" ]; then
      port=${kept[$name]} moves=fixed
    fi
    if port_open "$port" && ! port_is_ours "$name" "$process" "$port"; then
      [ "$moves" = moves ] || die "port $port is taken by another program: free it, or set $variable"
      port=$(port_free_from "$port")
    fi
    # Nobody listens yet on a port that was chosen just now.
    while [ -n "${chosen[$port]:-}" ] && [ "$moves" = moves ]; do port=$(port_free_from $((port + 100))); done
    chosen[$port]=$name
    printf -v "$name" '%s' "$port"
  done
  for entry in "${PORTS[@]}"; do
    read -r name _ <<<"$entry"
    printf "%s='%s'\n" "$name" "${!name}"
  done | write_private "$file"
}

# Fills the caller's `kept`.
load_kept_ports() {
  local line
  [ -e "$1" ] || return 0
  while IFS= read -r line; do
    if [[ $line =~ ^([A-Z_]+)=\'([0-9]+)\'$ ]]; then kept[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}; fi
  done <"$1"
}

is_port() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 < 65536)); }

port_is_ours() { [ "${kept[$1]:-}" = "$3" ] && is_running "$2"; }
