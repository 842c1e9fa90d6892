#!/usr/bin/env bash
# Sets up .venv and runs all tests; arguments go to pytest (scripts/test.sh tests/images -k crop).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec .venv/bin/python -m pytest "$@"
