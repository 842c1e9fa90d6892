#!/usr/bin/env bash
# Makes .venv and installs AutoSeg into it with the tested versions. Needs git and Python 3.11 or newer, nothing else.
#   scripts/setup.sh          to use AutoSeg
#   scripts/setup.sh dev      to work on it: linters, type checker, test runner
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:+[$1]}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" -c 'import sys; sys.exit("AutoSeg needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".$extras"
.venv/bin/autoseg --version
