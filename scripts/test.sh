#!/usr/bin/env bash
# Sets up and runs the checks and the tests; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
mypy
export OMP_NUM_THREADS=1 # one test per core beats two threads per tiny matrix
exec python -m pytest -n auto "$@"
