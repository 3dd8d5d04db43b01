#!/usr/bin/env bash
# One command from a fresh clone to a result. Makes a virtual environment on first use.
#
#   ./run.sh demo [smx demo options]    train, export, certify, verify and report on embedded data
#   ./run.sh test [pytest options]      lint, type check and the fast tests, in two processes (-n 0: in one)
#   ./run.sh smx ARGS...                any smx command in that environment
#
# VENV=DIR chooses the environment's folder (default .venv); EXTRA=gpu installs the GPU engines; LOCK=FILE installs the
# pinned, hashed packages of a file and nothing else (.ci/requirements.txt: Python 3.11, Linux, x86-64; what CI has).
set -euo pipefail
cd "$(dirname "$0")"
VENV=${VENV:-.venv}
EXTRA=${EXTRA:-cpu}
PYTHON=${PYTHON:-python3}

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }

install() {  # $1: extras; done once for each set of extras, state of pyproject.toml and lock file
  local stamp
  stamp="$VENV/.installed-$(printf '%s' "$1" | cat - pyproject.toml ${LOCK:+"$LOCK"} | cksum | tr ' ' -)"
  [ -e "$stamp" ] && return
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  echo "Installing into $VENV (PyTorch is large: about two minutes on first use) ..." >&2
  if [ -n "${LOCK:-}" ]; then
    "$VENV/bin/python" -m pip install --quiet --require-hashes --requirement "$LOCK"
    "$VENV/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
  else
    "$VENV/bin/python" -m pip install --quiet --editable ".[$1]"
  fi
  touch "$stamp"
}

command=${1:-}
[ $# -gt 0 ] && shift
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
case "$command" in
  demo) install "$EXTRA"; exec "$VENV/bin/smx" demo "$@" ;;
  smx)  install "$EXTRA"; exec "$VENV/bin/smx" "$@" ;;
  test)
    install "$EXTRA,dev"
    "$VENV/bin/ruff" check .
    "$VENV/bin/ruff" format --check .
    "$VENV/bin/mypy"
    exec "$VENV/bin/python" -m pytest -n 2 --dist worksteal "$@" ;;
  *) usage ;;
esac
