# shellcheck shell=bash disable=SC2034,SC2154
# Installs what is missing, and nothing else. Each entry: the Debian package, then the program or
# path pattern whose presence makes it unnecessary.

BUILD_NEEDS=(
  build-essential:cc
  make:make
  cmake:cmake
)
SERVER_NEEDS=(
  redis-server:redis-server
  redis-tools:redis-cli
  "rabbitmq-server:/usr/lib/rabbitmq/bin/rabbitmq-server"
  "postgresql:/usr/lib/postgresql/*/bin/postgres"
  "postgresql-client:/usr/lib/postgresql/*/bin/psql"
  curl:curl
)
# The peers that tests and benchmarks measure themselves against.
PEER_NEEDS=(
  nginx:nginx
  "libnginx-mod-http-lua:/usr/lib/nginx/modules/ngx_http_lua_module.so"
  "lua-nginx-redis:/usr/share/lua/5.1/nginx/redis.lua"
  "lua-resty-core:/usr/share/lua/5.1/resty/core.lua"
  "lua-resty-lrucache:/usr/share/lua/5.1/resty/lrucache.lua"
  wrk:wrk
  # A machine whose clock is wrong, for tests.
  "faketime:/usr/lib/*/faketime/libfaketime.so.1"
)

# What tests make disks fail with, a proxy that reads the same bytes as the edge and stands before two of them, and
# what keeps a Python program's parts apart.
TEST_NEEDS=(
  strace:strace
  iproute2:ip
  haproxy:haproxy
  "python3-venv:/usr/lib/python3*/ensurepip"
  shellcheck:shellcheck
)

# Judges licences, bans and sources of dependencies. Pinned: a new version may read deny.toml in another way.
CARGO_DENY=0.20.2

# Prints the program, which is built once, and without optimisation: it is soon done either way.
need_cargo_deny() {
  local home=$TARGET/cargo-deny-$CARGO_DENY
  if [ ! -x "$home/bin/cargo-deny" ]; then
    CARGO_TARGET_DIR=$home/build CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root "$home" \
      "cargo-deny@$CARGO_DENY" >&2 || return 1
    rm -rf "$home/build"
  fi
  printf '%s\n' "$home/bin/cargo-deny"
}

# Schemathesis asks every call of an OpenAPI document for what it promises. Pinned: a new version has new checks.
SCHEMATHESIS=(schemathesis==4.32.5 hypothesis==6.170.17)

# Prints the program, in an environment of its own that is made once.
need_schemathesis() {
  local home=$TARGET/schemathesis-${SCHEMATHESIS[0]##*=}
  if [ ! -x "$home/bin/schemathesis" ]; then
    python3 -m venv --clear "$home" && "$home/bin/pip" install -q "${SCHEMATHESIS[@]}" >&2 || return 1
  fi
  printf '%s\n' "$home/bin/schemathesis"
}

may_install() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# Prints the packages among ENTRIES… that are missing.
missing_packages() {
  local entry
  for entry in "$@"; do
    find_program "${entry#*:}" >/dev/null || printf '%s\n' "${entry%%:*}"
  done
}

install_missing() {
  local missing
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; without apt, install them yourself"
  if ! may_install && ! { [ -t 0 ] && command -v sudo >/dev/null; }; then
    die "missing: ${missing[*]}; run as root or with sudo, or: apt-get install ${missing[*]}"
  fi
  step "installing ${missing[*]}"
  (apt_install "${missing[@]}") || die "apt-get could not install: ${missing[*]}"
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]} == 0)) || die "still missing after the installation: ${missing[*]}"
}

# A subshell of its own: the traps put everything back, whatever happens.
apt_install() {
  local policy=/usr/sbin/policy-rc.d cluster=/etc/postgresql-common/createcluster.d/sluice-dev.conf
  local log=$STATE/logs/apt.log apt
  mkdir -p "$STATE/logs"
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300)
  trap apt_restore EXIT
  trap 'exit 130' INT TERM
  # Debian starts a server as soon as it is installed, and creates a database cluster: ours are
  # private, so neither may happen.
  if [ -e "$policy" ]; then as_root mv "$policy" "$policy.sluice-dev"; fi
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
  as_root mkdir -p "${cluster%/*}"
  printf 'create_main_cluster = false\n' | as_root tee "$cluster" >/dev/null
  if ! {
    as_root "${apt[@]}" update
    as_root "${apt[@]}" install --no-install-recommends "$@"
  } </dev/null >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    return 1
  fi
}

apt_restore() {
  local policy=/usr/sbin/policy-rc.d dir=/etc/postgresql-common/createcluster.d
  as_root rm -f "$policy" "$dir/sluice-dev.conf"
  as_root rmdir --ignore-fail-on-non-empty "$dir"
  if [ -e "$policy.sluice-dev" ]; then as_root mv "$policy.sluice-dev" "$policy"; fi
}
