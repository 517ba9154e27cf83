# shellcheck shell=bash disable=SC2030,SC2031,SC2034,SC2154
# Every check and test, against private servers that live only as long as the run.

PASSED=0 FAILED=0 FAILED_STEPS=()

count_step() { if [ "$2" = 0 ]; then PASSED=$((PASSED + 1)); else count_failure "$1"; fi; }
count_failure() {
  FAILED=$((FAILED + 1))
  FAILED_STEPS+=("$1")
}

check() {
  local name=$1 status=0
  shift
  step "$name"
  # The lock (descriptor 9) must not outlive us in some process that a check leaves behind.
  "$@" 9>&- || status=$?
  count_step "$name" "$status"
}

# A toolchain of rustup's minimal profile has neither.
need_cargo_parts() {
  if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    command -v rustup >/dev/null || return 0
    step 'installing rustfmt and clippy'
    rustup component add rustfmt clippy || warn 'rustup could not install them'
  fi
}

judge_dependencies() {
  local program
  program=$(need_cargo_deny) || return 1
  "$program" check licenses bans sources
}

run_tests() {
  local log=$STATE/logs/tests.log status=0
  if cargo nextest --version >/dev/null 2>&1; then
    step 'cargo nextest run'
    cargo nextest run --release --workspace --no-fail-fast 2>&1 9>&- | tee "$log" || status=$?
    count_nextest "$log" "$status"
  else
    step 'cargo test'
    cargo test --release --workspace --tests --no-fail-fast 2>&1 9>&- | tee "$log" || status=$?
    count_cargo_test "$log" "$status"
  fi
}

plain_text() { sed 's/\x1b\[[0-9;]*[A-Za-z]//g' "$1"; }

# add_tests PASSED FAILED STATUS: a run that failed without naming a test still is a failure.
add_tests() {
  PASSED=$((PASSED + $1)) FAILED=$((FAILED + $2))
  if (($2 > 0)); then
    FAILED_STEPS+=("$2 test(s)")
  elif (($3 != 0)); then
    count_failure 'the test run'
  fi
}

# "Summary [ 1.2s] 9/9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 0 skipped"
count_nextest() {
  local summary run passed
  summary=$(plain_text "$1" | grep -E '^ *Summary \[' | tail -n 1) || true
  run=$(sed -nE 's/.* ([0-9]+)(\/[0-9]+)? tests? run:.*/\1/p' <<<"$summary")
  passed=$(sed -nE 's/.* tests? run: ([0-9]+) passed.*/\1/p' <<<"$summary")
  add_tests "${passed:-0}" "$((${run:-0} - ${passed:-0}))" "$2"
}

# "test result: ok. 7 passed; 1 failed; 0 ignored; …", once for each binary.
count_cargo_test() {
  local passed failed
  read -r passed failed < <(plain_text "$1" |
    sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' |
    awk '{ p += $1; f += $2 } END { print p + 0, f + 0 }')
  add_tests "$passed" "$failed" "$2"
}

# The whole system as `up` starts it, on ports of its own, through every drill in a small size.
drill_system() {
  local status=0
  SLUICE_EDGE_PORT=$(port_free_from 18080)
  export SLUICE_EDGE_PORT SLUICE_STATE=$TARGET/test-system
  ./dev down --wipe >/dev/null || true
  ./dev up && "$TARGET/release/sluice-bench" --env "$SLUICE_STATE/env" drill all --small && drill_chaos ||
    status=$?
  if [ "$status" != 0 ]; then tail -n 40 "$SLUICE_STATE"/logs/*.log || true; fi
  ./dev down --wipe
  return "$status"
}

# Everything broken at once, by a seed that is always the same and by one that never is. A promise that
# does not hold ends it; what could not be carried out (2) is tried once more, as a slow test is.
drill_chaos() {
  local seed status
  for seed in 7 "$((RANDOM * 32768 + RANDOM))"; do
    step "chaos, seed $seed"
    status=0
    chaos "$seed" || status=$?
    if [ "$status" = 2 ]; then
      warn "chaos with seed $seed could not be carried out: once more"
      status=0
      { ./dev up && chaos "$seed"; } || status=$?
    fi
    [ "$status" = 0 ] || return 1
  done
}

chaos() {
  "$TARGET/release/sluice-bench" --env "$SLUICE_STATE/env" --seed "$1" \
    drill chaos --minutes 1 --faults 55 --rate 100
}

# Every listener of the whole system against docs/openapi.yaml: what is asked is drawn from the document, and every
# answer must be one that it promises.
contract_system() (
  local status=0 schemathesis port pid
  schemathesis=$(need_schemathesis) || return 1
  SLUICE_EDGE_PORT=$(port_free_from 18080)
  export SLUICE_EDGE_PORT SLUICE_STATE=$TARGET/test-contract
  ./dev down --wipe >/dev/null || true
  ./dev up || return 1
  # shellcheck source=/dev/null
  . "$SLUICE_STATE/env" && . "$SLUICE_STATE/secrets"
  port=$(port_free_from 18190)
  SLUICE__STATUS__LISTEN=127.0.0.1:$port "$TARGET/release/sluice-worker" timeout --name status \
    --config "$SLUICE_STATE/worker.toml" 2>"$SLUICE_STATE/logs/status.log" &
  pid=$!
  wait_until 20 curl -sf "http://127.0.0.1:$port/-/ready" || status=1
  contract "$SLUICE_EDGE_URL" "$(./dev token fuzz)" --include-tag public || status=1
  contract "$SLUICE_EDGE_ADMIN_URL" none --include-tag edge-admin || status=1
  contract "$SLUICE_API_URL" "$SLUICE_ADMIN_TOKEN" --include-tag back-office || status=1
  contract "$SLUICE_API_URL" "$EDGE_SECRET" --include-tag edge || status=1
  contract "http://127.0.0.1:$port" none --include-path /metrics --include-path /-/live --include-path /-/ready || status=1
  kill "$pid" || true
  ./dev down --wipe
  return "$status"
)

# contract URL BEARER WHICH…: with the same seed it asks the same. What the document allows may still be refused, as a
# SKU that is named twice is: no schema says that.
contract() (
  local url=$1 bearer=$2
  shift 2
  # It leaves its notes where it runs.
  cd "$SLUICE_STATE" && timeout 60 "$schemathesis" run "$ROOT/docs/openapi.yaml" --url "$url" -H "Authorization: Bearer $bearer" "$@" \
    --seed 20261121 --generation-database none --max-examples 20 --request-timeout 5 --workers 1 \
    --phases examples,coverage,fuzzing --exclude-checks positive_data_acceptance --warnings off
)

finish_tests() {
  local status=$?
  trap - EXIT INT TERM
  services_stop >&2 || true
  if [ "$status" != 0 ]; then count_failure 'the run was cut short'; fi
  ((FAILED == 0)) || printf 'failed: %s\n' "${FAILED_STEPS[@]}"
  printf '%s passed, %s failed\n' "$PASSED" "$FAILED"
  ((FAILED == 0)) && exit 0
  exit 1
}

command_test() {
  [ $# = 0 ] || die 'usage: ./dev test' 64
  STATE=$TARGET/test-services
  lock_state
  trap finish_tests EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  install_missing "${BUILD_NEEDS[@]}" "${SERVER_NEEDS[@]}" "${PEER_NEEDS[@]}" "${TEST_NEEDS[@]}"
  find_cargo
  need_cargo_parts
  # What an earlier run left behind, killed in the middle.
  services_stop
  rm -rf "$STATE/rabbitmq" "$STATE/ports" "$STATE/logs"
  postgres_wipe
  rm -rf "$STATE/postgres"
  check 'private RabbitMQ and PostgreSQL' services_start
  check 'Python programs to compare with' python_install
  load_values "$STATE/ports"
  eval "$(services_exports)"
  SLUICE_TEST_CROSSPLANE=$(python_of_peers)
  export SLUICE_TEST_CROSSPLANE
  check 'cargo fmt --check' cargo fmt --all --check
  check 'cargo clippy' \
    cargo clippy --release --workspace --all-targets -- -D warnings
  check 'cargo doc' env RUSTDOCFLAGS='-D warnings' cargo doc --release --workspace --no-deps
  check 'cargo deny' judge_dependencies
  check 'shellcheck' shellcheck --external-sources dev ops/dev/*.sh ops/redis/*.sh ops/postgres/*.sh
  check 'cargo build' cargo build --release --workspace --bins
  run_tests
  check 'every listener by its document' contract_system
  check 'the whole system, drilled' drill_system
}
