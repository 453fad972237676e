# Sourced by the other scripts: a virtual environment with every dependency pinned (constraints.txt), made once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${WINNOW_VENV:-.venv}"
stamp="$venv/.winnow-ready"
if [ ! -e "$stamp" ] || [ constraints.txt -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Winnow needs Python 3.11 or newer, found $("$python" --version 2>&1); set PYTHON=/path/to/python" >&2
        exit 1
    }
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cli,papers,onnx,report,compare,tensorboard,dev]'
    touch "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"
case "$venv" in /*) export PATH="$venv/bin:$PATH" ;; esac
