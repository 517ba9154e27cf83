# shellcheck shell=bash disable=SC2034,SC2154
# Words, deadlines, ports, pids: what every part of ./dev stands on.

say() { printf '%s\n' "$*"; }
step() { printf '\033[1m==>\033[0m %s\n' "$*"; }
warn() { printf 'dev: %s\n' "$*" >&2; }
die() {
  warn "$1"
  exit "${2:-1}"
}

# Runs a command until it succeeds or the deadline (seconds) has passed.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# Replaces a file only when its content (stdin) differs, so that "changed" can be told.
# Created 0600: nearly everything written here holds a secret.
write_private() {
  local file=$1 new="$1.new"
  (umask 077 && cat >"$new")
  if cmp -s "$new" "$file"; then rm -f "$new"; else mv -f "$new" "$file"; fi
}

random_hex() { head -c "${1:-20}" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
random_seed() { head -c 32 /dev/urandom | base64 -w 0 | tr '+/' '-_' | tr -d '='; }
hex_escaped() { printf '%s' "$1" | sed 's/../\\x&/g'; }
digest_of() { cat "$@" 2>/dev/null | sha256sum | cut -c1-16; }

# ---- programs ----------------------------------------------------------------------------------

# Prints the first match of a command name or a path pattern; Debian keeps servers out of PATH.
find_program() {
  local candidate
  case $1 in
    /*)
      # The newest version sorts last; the pattern is meant to expand.
      # shellcheck disable=SC2086
      candidate=$(compgen -G "$1" | sort -V | tail -n 1) || return 1
      [ -n "$candidate" ] && printf '%s\n' "$candidate"
      ;;
    *) PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$1" ;;
  esac
}

need_program() { find_program "$1" || die "$1 is not installed"; }

# ---- ports -------------------------------------------------------------------------------------

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# In steps of 100, so that neighbouring defaults cannot meet.
port_free_from() {
  local port=$1
  while port_open "$port"; do ((port += 100)); done
  printf '%s\n' "$port"
}

# ---- processes ---------------------------------------------------------------------------------
# $STATE/pids/NAME.pid holds the pid alone. $STATE/started/NAME holds "pid start boot fingerprint":
# the start time tells a process from a later one with the same pid, the fingerprint (binary and
# configuration) tells whether it still runs what is on disk.

start_time_of() {
  local line fields
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The command name may hold spaces and parentheses: count fields after the last ')'.
  read -r -a fields <<<"${line##*) }"
  [ "${fields[0]}" != Z ] && printf '%s\n' "${fields[19]}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }

# Prints the pid of a live process that we started under this name.
pid_of() {
  local pid start boot
  read -r pid start boot _ 2>/dev/null <"$STATE/started/$1" || return 1
  [ "$boot" = "$(boot_id)" ] && [ "$(start_time_of "$pid")" = "$start" ] && printf '%s\n' "$pid"
}

is_running() { pid_of "$1" >/dev/null; }

fingerprint_of() {
  local pid start boot print
  read -r pid start boot print 2>/dev/null <"$STATE/started/$1" || return 1
  printf '%s\n' "$print"
}

# record NAME PID FINGERPRINT
record() {
  local start
  start=$(start_time_of "$2") || return 1
  mkdir -p "$STATE/pids" "$STATE/started"
  printf '%s\n' "$2" >"$STATE/pids/$1.pid"
  printf '%s %s %s %s\n' "$2" "$start" "$(boot_id)" "$3" >"$STATE/started/$1"
}

# spawn NAME FINGERPRINT COMMAND…: in a session of its own, so that no Ctrl-C reaches it.
# The command must exec, never fork: its pid is the one that is recorded.
spawn() {
  local name=$1 print=$2 pid
  shift 2
  mkdir -p "$STATE/logs"
  # Descriptor 9 is our lock (see lock_state): a server must not keep it. The shell starts
  # background commands with SIGINT ignored; a server gets it back.
  setsid env --default-signal=INT,QUIT "$@" </dev/null >>"$STATE/logs/$name.log" 2>&1 9>&- &
  pid=$!
  record "$name" "$pid" "$print" || return 1
}

# stop NAME [SECONDS] [SIGNAL]: politely, then by force.
stop() {
  local name=$1 seconds=${2:-10} signal=${3:-TERM} pid
  if pid=$(pid_of "$name"); then
    kill "-$signal" "$pid" 2>/dev/null || true
    if ! wait_until "$seconds" is_gone "$name"; then
      warn "$name did not stop within $seconds s: killing it"
      kill -KILL "$pid" 2>/dev/null || true
      wait_until 5 is_gone "$name" || warn "$name (pid $pid) does not die"
    fi
  fi
  rm -f "$STATE/pids/$name.pid" "$STATE/started/$name"
}

is_gone() { ! is_running "$1"; }

# Says which log to read and shows its end.
fail_with_log() {
  local name=$1 log="$STATE/logs/$1.log"
  warn "$2"
  if [ -s "$log" ]; then
    warn "the end of ${log#"$ROOT/"}:"
    tail -n "${3:-20}" "$log" | sed 's/^/    /' >&2
  fi
  exit 1
}

# One ./dev at a time per state directory. A wipe deletes the lock with the rest: whoever waited
# for the deleted one takes the new one.
lock_state() {
  local file=$STATE/lock
  while :; do
    mkdir -p "$STATE"
    exec 9>"$file"
    if ! flock -n 9; then
      warn 'waiting for another ./dev to finish'
      flock -w 1800 9 || die "another ./dev holds $file"
    fi
    [ "$(stat -Lc %i /proc/self/fd/9)" = "$(stat -c %i "$file" 2>/dev/null)" ] && return 0
  done
}

# wait_until_running SECONDS NAME COMMAND…: gives up at once when the process has died.
wait_until_running() {
  local seconds=$1 name=$2
  shift 2
  wait_until "$seconds" answered_or_dead "$name" "$@" && is_running "$name" && "$@" >/dev/null 2>&1
}

answered_or_dead() {
  local name=$1
  shift
  "$@" || is_gone "$name"
}
