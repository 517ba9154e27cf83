# shellcheck shell=bash disable=SC2034,SC2154
# Python programs that tests measure us against, pinned, in an environment of their own.

PYTHON_PEERS=(crossplane==0.5.8)
PYTHON_NEEDS=("python3-venv:/usr/lib/python3*/ensurepip/__init__.py")

python_of_peers() { printf '%s\n' "$TARGET/python/bin/python"; }

# Installs them once, and anew when the list changes.
python_install() {
  local folder=$TARGET/python log=$STATE/logs/python.log
  if [ "$(cat "$folder/peers" 2>/dev/null)" = "${PYTHON_PEERS[*]}" ]; then return 0; fi
  python3 -c 'import ensurepip' 2>/dev/null || install_missing "${PYTHON_NEEDS[@]}"
  mkdir -p "$STATE/logs"
  rm -rf "$folder"
  if ! { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet "${PYTHON_PEERS[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    warn "python3 could not install: ${PYTHON_PEERS[*]}"
    return 1
  fi
  printf '%s\n' "${PYTHON_PEERS[*]}" >"$folder/peers"
}
