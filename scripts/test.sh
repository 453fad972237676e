#!/usr/bin/env bash
# Sets up and runs the checks and the tests; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
mypy
exec python -m pytest "$@"
