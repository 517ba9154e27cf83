# shellcheck shell=bash disable=SC2034,SC2154
# The demo sale: made, opened, and renewed when it is sold out or over.

DEMO_SECONDS=604800
DEMO_STOCK=1000

utc_in() { date -u -d "@$(($(date +%s) + $1))" +%Y-%m-%dT%H:%M:%S.000Z; }

demo_sale() {
  cat <<JSON
{"sale":"demo","starts_at":"$(utc_in 0)","ends_at":"$(utc_in $DEMO_SECONDS)","mode":"queued",
 "accept_after":"journal","pay_within_seconds":900,"segments":1,
 "items":[{"sku":"phone","title":"Phone","price":59900,"currency":"EUR","stock":$DEMO_STOCK,"per_user":1}]}
JSON
}

# DEMO_STATE: what the back office calls the sale's state, or `absent`, or `unknown`.
demo_look() {
  DEMO_STATE=unknown
  api GET /sales/demo || return 0
  case $API_STATUS in
    200) DEMO_STATE=$(json_text state <<<"$API_BODY") || DEMO_STATE=unknown ;;
    404) DEMO_STATE=absent ;;
  esac
}

# What buyers see: one of the public states, and whether a phone is left.
demo_public() { curl -sS --max-time 2 "http://127.0.0.1:$EDGE_PORT/v1/sales/demo" 2>/dev/null; }

demo_buyable() {
  local view
  view=$(demo_public) && [ "$(json_text state <<<"$view")" = open ] &&
    grep -q '"available" *: *true' <<<"$view"
}

# demo_call METHOD PATH [JSON] [CURL OPTIONS…]: says what was answered when it was not done.
demo_call() {
  if api "$@" && [[ $API_STATUS == 20? ]]; then return 0; fi
  DEMO_TROUBLE="$1 /admin/v1$2: $API_STATUS: $API_BODY"
  return 1
}

# One step towards a sale that can be bought from.
demo_advance() {
  demo_look
  case $DEMO_STATE in
    absent) demo_call POST /sales "$(demo_sale)" ;;
    created) demo_call POST /sales/demo/preload ;;
    preloaded) demo_call POST /sales/demo/open ;;
    paused) demo_call POST /sales/demo/resume ;;
    closed) demo_call POST /sales/demo/reopen ;;
    open) demo_renew ;;
    *) DEMO_TROUBLE="GET /admin/v1/sales/demo: $API_STATUS: $API_BODY" ;;
  esac
}

demo_renew() {
  case $(demo_public | json_text state) in
    ended) demo_call PATCH /sales/demo "{\"ends_at\":\"$(utc_in $DEMO_SECONDS)\"}" ;;
    sold_out)
      # One key a run: however often this is tried, the units come once.
      demo_call POST /sales/demo/stock \
        "{\"sku\":\"phone\",\"delta\":$DEMO_STOCK,\"reason\":\"demo renewed by ./dev up\"}" \
        -H "Idempotency-Key: dev-up-$DEMO_RUN"
      ;;
  esac
}

demo_step() {
  demo_buyable && return 0
  demo_advance || true
  demo_buyable
}

# Asks for a sale token as a buyer would, which takes nothing.
demo_token_ready() {
  printf 'header = "Authorization: Bearer %s"\n' "$(jwt_for dev-up)" |
    curl -sS -f --max-time 2 -K - -X POST "http://127.0.0.1:$EDGE_PORT/v1/sales/demo/token"
}

demo_start() {
  DEMO_RUN=$(date +%s)-$$ DEMO_TROUBLE=''
  # The wardens look through every sale first: seconds, and a minute where there are millions of orders.
  if ! wait_until 15 demo_step; then
    step 'waiting for the wardens, who compare every sale with the books (.run/logs/warden-1.log)'
  fi
  if ! wait_until 285 demo_step; then
    warn "the demo sale cannot be bought from: $(demo_public || echo 'the edge does not answer')"
    [ -z "$DEMO_TROUBLE" ] || warn "$DEMO_TROUBLE"
    (fail_with_log worker 'see also edge.log, warden-1.log and warden-2.log') || true
    fail_with_log warden-1 'the demo sale is not open'
  fi
  wait_until 10 demo_token_ready || fail_with_log edge 'the edge issues no sale token'
}

print_hints() {
  print_first_hints
  cat <<HINTS
  state         .run/  (logs in .run/logs, programs in .run/bin, everything else in .run/env)
HINTS
  print_purchase
  cat <<HINTS
Then the books:
  set -a; . .run/env; set +a; .run/bin/sluice-worker audit --sale demo
HINTS
}

print_compose_hints() {
  print_first_hints
  cat <<HINTS
  containers    docker compose ps; docker compose logs -f edge-1 warden-1 api  (passwords in .run/compose.env)
HINTS
  print_purchase
  cat <<HINTS
Then the books:
  docker compose exec api sluice-worker audit --sale demo
HINTS
}

print_first_hints() {
  cat <<HINTS

Sluice is up.
  gate          http://127.0.0.1:$EDGE_PORT  (admin http://127.0.0.1:$EDGE_ADMIN_PORT, metrics at /metrics)
  back office   http://127.0.0.1:$API_PORT/admin/v1/  (bearer: SLUICE_ADMIN_TOKEN in .run/env)
  RabbitMQ UI   http://127.0.0.1:$AMQP_MANAGEMENT_PORT  user operator, password $AMQP_OPERATOR_PASSWORD
HINTS
}

print_purchase() {
  local edge="http://127.0.0.1:$EDGE_PORT"
  cat <<HINTS

See the sale:
  curl -s $edge/v1/sales/demo
Buy a phone as alice:
  JWT=\$(./dev token alice)
  TOKEN=\$(curl -s -X POST -H "Authorization: Bearer \$JWT" $edge/v1/sales/demo/token |
    sed 's/.*"token":"\\([^"]*\\)".*/\\1/')
  curl -i -H "Authorization: Bearer \$JWT" -H "X-Sale-Token: \$TOKEN" \\
    -d '{"sku":"phone","quantity":1}' -H 'Content-Type: application/json' $edge/v1/sales/demo/orders
HINTS
}
