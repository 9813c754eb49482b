#!/usr/bin/env bash
# Makes the virtual environment .venv and installs the package into it. `bash setup.sh dev` adds the tools for tests.
# Does nothing where that has been done. Settings, as environment variables:
#   PYTHON           the Python to use, 3.10 or newer; default: the first one found
#   TORCH_INDEX_URL  the package index to take PyTorch from, for a build other than the one that pip would choose
set -euo pipefail
cd "$(dirname "$0")"
extra="${1:-}"

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer found${PYTHON:+ at $PYTHON}. Install one, or set PYTHON to its path."
}

# The usual build of PyTorch for Linux brings gigabytes of CUDA libraries, which are of no use without an NVIDIA GPU.
install_torch() {
    local torch
    torch="$(grep '^torch==' constraints.txt)"
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        pip install --index-url "$TORCH_INDEX_URL" "$torch"
    elif [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then
        pip install "$torch+cpu" 2>/dev/null && return
        echo "No GPU found, and pip knows of no CPU-only build of PyTorch: the usual one follows, a download of some GB."
        echo "To avoid that, stop here (Ctrl-C) and set TORCH_INDEX_URL: see 'Install' in README.md."
        pip install "$torch"
    else
        pip install "$torch"
    fi
}

pip() {
    .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"
}

wanted="$(cat pyproject.toml constraints.txt | cksum)"
ready() {
    [ "$(cat ".venv/ready-$1" 2>/dev/null)" = "$wanted" ]
}

if ready dev || { [ -z "$extra" ] && ready run; }; then
    exit 0
fi
python="$(find_python)"
echo "Installing into .venv with $("$python" --version): this takes some minutes the first time."
[ -x .venv/bin/python ] || "$python" -m venv .venv || fail "cannot make a virtual environment. On Debian or Ubuntu: apt install python3-venv"
install_torch
pip install -c constraints.txt -e ".${extra:+[$extra]}"
echo "$wanted" >".venv/ready-${extra:-run}"
