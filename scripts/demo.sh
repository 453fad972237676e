#!/usr/bin/env bash
# Sets up and runs the main job; arguments go to `winnow train` (default: digits, a tenth of the weights).
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ $# -gt 0 ] || set -- digits --keep 0.1
exec winnow train "$@"
