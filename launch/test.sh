#!/bin/sh
# Everything that must hold before a commit: format, lint, types, tests. Ten minutes, two cores.
#   sh launch/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
. launch/env.sh

install dev
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/basedpyright
.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile "$@"
