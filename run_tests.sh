#!/usr/bin/env bash
# Sets up where that has not been done, checks style and types, and runs the tests. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")"
bash setup.sh dev
source .venv/bin/activate
# Tests use small arrays: one thread is fastest, and other work on the machine does not slow it down. Two processes share
# the files of tests.
export OMP_NUM_THREADS=1
ruff check .
mypy
pytest --numprocesses 2 --dist loadfile -m "not slow and not readme" "$@"
