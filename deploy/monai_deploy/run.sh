#!/usr/bin/env bash
# Runs the application on a study: bash run.sh STUDY_DIR OUTPUT_DIR [BUNDLE_DIR]
# The first time it makes the virtual environment .venv here; without arguments it does no more than that.
# Settings, as environment variables:
#   PYTHON           the Python to use, 3.10 or newer; default: python3
#   TORCH_INDEX_URL  the package index to take PyTorch from, such as one with CPU-only builds
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$here/../.."
venv="$here/.venv"

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

if [ ! -e "$venv/ready" ]; then
    echo "Installing into $venv: this takes some minutes." >&2
    "${PYTHON:-python3}" -m venv "$venv"
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' "$root/constraints.txt")"
    pip install -c "$root/constraints.txt" -r "$here/requirements.txt" -e "$root"
    touch "$venv/ready"
fi
[ $# -gt 0 ] || exit 0
[ $# -ge 2 ] || { sed -n 's/^# Runs/Runs/p' "$0" >&2; exit 2; }

# Holoscan, on which MONAI Deploy stands, needs the CUDA runtime library, though neither a GPU nor its driver.
site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
export LD_LIBRARY_PATH="$site/nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export HOLOSCAN_LOG_LEVEL="${HOLOSCAN_LOG_LEVEL:-ERROR}"
ulimit -s 32768 2>/dev/null || true # Holoscan asks for it
mkdir -p "$2"
exec "$venv/bin/python" "$here/app.py" -i "$1" -o "$2" -m "${3:-$root/bundle}"
