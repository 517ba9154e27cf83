# shellcheck shell=bash disable=SC2034,SC2154
# A buyer's JWT (HS256), made with coreutils alone: `./dev token` works before anything is built,
# and the secret never is on a command line.

base64url() { base64 -w 0 | tr '+/' '-_' | tr -d '='; }

# hmac_sha256 KEY: of stdin, as bytes.
hmac_sha256() {
  local hex i byte inner_pad='' outer_pad='' digest
  hex=$(printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n')
  if ((${#hex} > 128)); then hex=$(printf '%s' "$1" | sha256sum | cut -d' ' -f1); fi
  for ((i = 0; i < 128; i += 2)); do
    byte=$((16#0${hex:i:2}))
    inner_pad+=$(printf '\\x%02x' $((byte ^ 0x36)))
    outer_pad+=$(printf '\\x%02x' $((byte ^ 0x5c)))
  done
  digest=$({ printf '%b' "$inner_pad" && cat; } | sha256sum | cut -d' ' -f1)
  digest=$({ printf '%b' "$outer_pad$(hex_escaped "$digest")"; } | sha256sum | cut -d' ' -f1)
  printf '%b' "$(hex_escaped "$digest")"
}

# jwt_for USER: good for a day.
jwt_for() {
  local user claims signed now
  now=$(date +%s)
  user=$(printf '%s' "$1" | sed 's/[\\"]/\\&/g')
  claims="{\"sub\":\"$user\",\"iat\":$now,\"exp\":$((now + 86400))}"
  signed=$(printf '%s' '{"alg":"HS256","typ":"JWT"}' | base64url).$(printf '%s' "$claims" | base64url)
  printf '%s.%s\n' "$signed" "$(printf '%s' "$signed" | hmac_sha256 "$JWT_SECRET" | base64url)"
}

command_token() {
  [ $# = 1 ] || die 'usage: ./dev token USER' 64
  # Bytes, not letters of the locale: the contract is printable ASCII.
  (LC_ALL=C && [[ $1 =~ ^[!-~]{1,128}$ ]]) ||
    die 'USER is 1 to 128 printable ASCII characters without spaces' 64
  load_values "$STATE/secrets"
  [ -n "${JWT_SECRET:-}" ] || die 'no secrets yet: run ./dev up first'
  jwt_for "$1"
}
