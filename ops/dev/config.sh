# shellcheck shell=bash disable=SC2034,SC2154
# What `up` writes for the programs and for people: .run/env, .run/edge.toml, .run/worker.toml,
# .run/compose.env.
# Only what this machine decides is written; everything else is the programs' default.

write_env() {
  write_private "$STATE/env" <<ENV
SLUICE_EDGE_URL='http://127.0.0.1:$EDGE_PORT'
SLUICE_EDGE_ADMIN_URL='http://127.0.0.1:$EDGE_ADMIN_PORT'
SLUICE_API_URL='http://127.0.0.1:$API_PORT'
SLUICE_ADMIN_TOKEN='$ADMIN_TOKEN'
SLUICE_JWT_SECRET='$JWT_SECRET'
SLUICE_ADMIN_JWT_SECRET='$ADMIN_JWT_SECRET'
SLUICE_TOKEN_SECRET='$TOKEN_SECRET'
SLUICE_PAYMENT_SECRET='$PAYMENT_SECRET'
SLUICE_REDIS_URL='redis://operator:$REDIS_OPERATOR_PASSWORD@127.0.0.1:$REDIS_PORT'
SLUICE_REDIS_REPLICA_PASSWORD='$REDIS_REPLICA_PASSWORD'
SLUICE_AMQP_URL='amqp://operator:$AMQP_OPERATOR_PASSWORD@127.0.0.1:$AMQP_PORT/sluice'
SLUICE_AMQP_MANAGEMENT_URL='http://127.0.0.1:$AMQP_MANAGEMENT_PORT'
SLUICE_DATABASE_URL='postgres://sluice_reader:$DATABASE_READER_PASSWORD@127.0.0.1:$DATABASE_PORT/sluice'
ENV
}

write_edge_config() {
  write_private "$STATE/edge.toml" <<TOML
name = "edge"
state_dir = "$STATE/state"

[listen]
public = ["127.0.0.1:$EDGE_PORT"]
admin = "127.0.0.1:$EDGE_ADMIN_PORT"

[identity]
jwt_secret = "$JWT_SECRET"

[token]
keys = ["k1:$TOKEN_SECRET"]

[receipt]
keys = ["r1:$RECEIPT_SEED"]

[redis]
url = "redis://edge:$REDIS_EDGE_PASSWORD@127.0.0.1:$REDIS_PORT"

[amqp]
url = "amqp://edge:$AMQP_EDGE_PASSWORD@127.0.0.1:$AMQP_PORT/sluice"

[api]
address = "127.0.0.1:$API_PORT"
secret = "$EDGE_SECRET"
TOML
}

write_worker_config() {
  write_private "$STATE/worker.toml" <<TOML
name = "worker"

[redis]
url = "redis://worker:$REDIS_WORKER_PASSWORD@127.0.0.1:$REDIS_PORT"

[amqp]
url = "amqp://worker:$AMQP_WORKER_PASSWORD@127.0.0.1:$AMQP_PORT/sluice"
management_url = "http://worker:$AMQP_WORKER_PASSWORD@127.0.0.1:$AMQP_MANAGEMENT_PORT"

[database]
url = "postgres://sluice:$DATABASE_PASSWORD@127.0.0.1:$DATABASE_PORT/sluice"

[api]
listen = "127.0.0.1:$API_PORT"
admin_token = "$ADMIN_TOKEN"
admin_jwt_secret = "$ADMIN_JWT_SECRET"
payment_secret = "$PAYMENT_SECRET"
edge_secret = "$EDGE_SECRET"
TOML
}

# Every variable that compose.yaml refers to and that is chosen here.
write_compose_env() {
  local name
  grep -oE '\$\{SLUICE_[A-Z_]+' "$ROOT/compose.yaml" | sort -u | while IFS= read -r name; do
    name=${name#*SLUICE_}
    if [ -n "${!name:-}" ]; then printf "SLUICE_%s='%s'\n" "$name" "${!name}"; fi
  done | write_private "$STATE/compose.env"
}

# Docker compose reads `.env` by itself, so that `docker compose ps`, `logs`, `exec` need nothing else.
link_compose_env() {
  local file
  file=$(realpath "$STATE/compose.env")
  if [ -L "$ROOT/.env" ] || [ ! -e "$ROOT/.env" ]; then
    ln -sfn "$file" "$ROOT/.env"
  else
    warn ".env is not ours and stays: docker compose --env-file $file ps"
  fi
}

unlink_compose_env() {
  if [ "$(readlink "$ROOT/.env")" = "$(realpath "$STATE/compose.env")" ]; then rm -f "$ROOT/.env"; fi
}

write_configuration() {
  mkdir -p "$STATE/state"
  write_env
  write_edge_config
  write_worker_config
}
