#!/usr/bin/env bash
# Resolve requirements/lock-cpu.txt again, from pyproject.toml's extras and requirements/cpu.in.
# Usage: scripts/lock.sh [uv options, such as --upgrade or --upgrade-package NAME]
# Without options, versions that are locked already stay. Needs uv: `pip install uv`.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=(uv)
if ! command -v uv >/dev/null; then
  python3 -m uv --version >/dev/null 2>&1 || { echo "lock.sh: needs uv: pip install uv" >&2; exit 1; }
  uv=(python3 -m uv)
fi

# uv does not read pip's settings: where pip is told of folders with wheels (torch+cpu may be in one), uv is told too.
links=()
for place in ${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}; do
  links+=(--find-links "$place")
done

compile() {
  "${uv[@]}" pip compile pyproject.toml requirements/cpu.in --extra langgraph --extra autogen --extra sql --extra postgres --extra http \
    --extra cpu --extra dev --extra bench \
    --override requirements/overrides.txt --python-version 3.11 --no-header --no-annotate --quiet \
    ${links[@]+"${links[@]}"} --output-file requirements/lock-cpu.txt "$@"
}

compile "$@" || compile --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match "$@"

# `torch 2.13.0+cpu` and its neighbours must never be looked up with hashes or sources: the lock is names and versions.
if grep -qE '^(torchvision|torchaudio|torchcodec|triton)==' requirements/lock-cpu.txt; then
  echo "lock.sh: an overridden package came back into requirements/lock-cpu.txt" >&2
  exit 1
fi
