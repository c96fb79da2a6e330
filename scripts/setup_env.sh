#!/usr/bin/env bash
# Make a virtual environment with exactly what requirements/lock-cpu.txt says, and this project in it.
# Usage: scripts/setup_env.sh VENV      (PYTHON=python3.12 chooses the interpreter)
# Safe to run again: it does nothing while the lock is unchanged, and goes on where an interrupted run stopped.
set -euo pipefail
venv="$(mkdir -p "$(dirname "${1:?usage: setup_env.sh VENV}")" && cd "$(dirname "$1")" && pwd)/$(basename "$1")"
cd "$(dirname "$0")/.."
lock=requirements/lock-cpu.txt
# PyTorch's public index of CPU wheels: only asked where the user's own configuration does not have torch+cpu.
torch_index=https://download.pytorch.org/whl/cpu
uv_version=0.13.9

say() { echo "setup_env: $*" >&2; }

# Two `make` at once must not write into one environment. Without flock (macOS) nobody is kept out.
if command -v flock >/dev/null && [ -z "${HALO_SETUP_LOCKED:-}" ]; then
  key="$(printf %s "$venv" | sha256sum | cut -c1-12)"
  HALO_SETUP_LOCKED=1 exec flock "${TMPDIR:-/tmp}/halo-setup-$(id -u)-$key.lock" bash "$PWD/scripts/setup_env.sh" "$venv"
fi

stamp="$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1) $PWD"
if [ "$(cat "$venv/.halo-lock" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c 'import halo_core' 2>/dev/null; then
  exit 0
fi

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python="${PYTHON:-python3}"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { say "needs Python 3.11 or newer, and $python is $("$python" -V). Set PYTHON to one."; exit 1; }
  say "making $venv with $("$python" -V)"
  "$python" -m venv --clear "$venv"
fi
py="$venv/bin/python"
rm -f "$venv/.halo-lock"

# Run a command silently; show what it said only where it fails.
quietly() {
  local out
  out="$(mktemp)"
  if "$@" >"$out" 2>&1; then rm -f "$out"; return 0; fi
  last_failure="$(tail -n 25 "$out")"
  rm -f "$out"
  return 1
}

pip_setting() { "$py" -m pip config get "global.$1" 2>/dev/null || true; }

with_uv() {
  # uv does not read pip's settings, so it is told what they are.
  local args=(--python "$py" --no-deps --compile-bytecode) place index
  for place in ${PIP_FIND_LINKS:-$(pip_setting find-links)}; do args+=(--find-links "$place"); done
  index="${PIP_INDEX_URL:-$(pip_setting index-url)}"
  [ -z "$index" ] || args+=(--default-index "$index")
  SSL_CERT_FILE="${SSL_CERT_FILE:-${PIP_CERT:-$(pip_setting cert)}}"
  [ -z "$SSL_CERT_FILE" ] && unset SSL_CERT_FILE || export SSL_CERT_FILE
  UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" UV_LINK_MODE="${UV_LINK_MODE:-copy}" \
    "$venv/bin/uv" pip install "${args[@]}" "$@"
}

with_pip() { "$py" -m pip install --disable-pip-version-check --no-deps --progress-bar off "$@"; }

install() {
  # uv installs the lock several times faster than pip; whatever it cannot do here, pip may.
  if quietly "$py" -m pip install --disable-pip-version-check "uv==$uv_version"; then
    quietly with_uv -r "$lock" && return 0
    quietly with_uv --index "$torch_index" --index-strategy unsafe-best-match -r "$lock" && return 0
  fi
  say "uv did not manage, trying pip"
  quietly with_pip -r "$lock" && return 0
  quietly with_pip --extra-index-url "$torch_index" -r "$lock" && return 0
  return 1
}

say "installing $(grep -c == "$lock") packages from $lock (3 GB; minutes on the first run)"
started=$SECONDS
if ! install; then
  printf '%s\n' "$last_failure" >&2
  say "the packages could not be installed (above: the end of the last attempt). Run it again to go on from here."
  exit 1
fi
rm -rf halo_agents.egg-info  # an old one beside the sources would hide new entry points
if ! quietly "$py" -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .; then
  printf '%s\n' "$last_failure" >&2
  say "the project itself could not be installed into $venv"
  exit 1
fi
printf '%s' "$stamp" >"$venv/.halo-lock"
say "done in $((SECONDS - started)) s"
