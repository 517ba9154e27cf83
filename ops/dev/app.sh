# shellcheck shell=bash disable=SC2034,SC2154
# Our own programs: built, linked, started; each only when it does not run what is on disk.

PROGRAMS=(sluice-edge sluice-worker sluice-bench)

find_cargo() {
  command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null || die 'no cargo: install a Rust toolchain first (https://rustup.rs)'
}

build_programs() {
  find_cargo
  step 'building (cargo build --release --workspace)'
  # The lock (descriptor 9) is not for a compiler cache's daemon to keep.
  cargo build --release --workspace 9>&- || die 'the build failed'
}

link_programs() {
  local program
  mkdir -p "$STATE/bin"
  for program in "${PROGRAMS[@]}" sluice-nginx; do
    if [ -x "$TARGET/release/$program" ]; then
      ln -sfn "$TARGET/release/$program" "$STATE/bin/$program"
    fi
  done
}

# app_start NAME PROGRAM CONFIG ARGS…
app_start() {
  local name=$1 program=$STATE/bin/$2 config=$STATE/$3 print
  shift 3
  print=$(stat -Lc '%i-%Y-%s' "$program")-$(digest_of "$config")
  if is_running "$name" && [ "$(fingerprint_of "$name")" != "$print" ]; then
    say "    $name changed: restarting it"
    stop "$name" 30
  fi
  is_running "$name" || spawn "$name" "$print" "$program" "$@" --config "$config"
}

prepare_stores() {
  local worker=$STATE/bin/sluice-worker config=$STATE/worker.toml
  "$worker" migrate --config "$config" >>"$STATE/logs/migrate.log" 2>&1 ||
    fail_with_log migrate 'the database could not be migrated'
  "$worker" topology apply --config "$config" >>"$STATE/logs/topology.log" 2>&1 ||
    fail_with_log topology 'the RabbitMQ topology could not be applied'
}

apps_start() {
  app_start warden-1 sluice-worker worker.toml reconcile --name warden-1
  app_start warden-2 sluice-worker worker.toml reconcile --name warden-2
  app_start worker sluice-worker worker.toml orders outbox saga timeout api
  app_start edge sluice-edge edge.toml
  wait_until_running 30 worker api_ready ||
    fail_with_log worker "the back office does not answer on port $API_PORT"
  wait_until_running 30 edge edge_ready ||
    fail_with_log edge "the edge is not ready (http://127.0.0.1:$EDGE_ADMIN_PORT/-/ready)"
  for name in warden-1 warden-2; do
    is_running "$name" || fail_with_log "$name" "$name died"
  done
}

edge_ready() { curl -sS -f --max-time 2 "http://127.0.0.1:$EDGE_ADMIN_PORT/-/ready"; }
api_ready() { api GET /sales && [ "$API_STATUS" = 200 ]; }

# api METHOD PATH [JSON] [CURL OPTIONS…]: the back office as the administrator. Fills API_STATUS
# and API_BODY; fails only when there was no answer.
api() {
  local method=$1 path=$2 json=${3:-} answer
  shift $(($# < 3 ? $# : 3))
  [ -z "$json" ] || set -- "$@" -H 'Content-Type: application/json' --data-binary "$json"
  API_STATUS='no answer'
  answer=$(printf 'header = "Authorization: Bearer %s"\n' "$ADMIN_TOKEN" |
    curl -sS --max-time 15 -K - -X "$method" -w '\n%{http_code}' "$@" \
      "http://127.0.0.1:$API_PORT/admin/v1$path" 2>&1) || { API_BODY=$answer && return 1; }
  API_STATUS=${answer##*$'\n'} API_BODY=${answer%$'\n'*}
}

# json_text NAME: the first text member of that name in the JSON on stdin.
json_text() { grep -o "\"$1\" *: *\"[^\"]*\"" | head -n 1 | sed 's/.*: *"\(.*\)"$/\1/'; }
