#!/usr/bin/env bash
# Makes the environment of MONAI Label and its app with the bundle: bash deploy/monai_label/setup.sh [BUNDLE.zip]
# Without an argument the bundle of this repository is packed. What has been done already is not done again.
# Settings, as environment variables:
#   ATLAS_ISTN_LABEL_ENV  the environment; default deploy/monai_label/.venv
#   ATLAS_ISTN_LABEL_APP  the folder that holds the app; default output/monai_label
#   PYTHON                the Python to use, 3.10 to 3.12; default python3
#   TORCH_INDEX_URL       the package index to take PyTorch and torchvision from
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/settings.sh"

pip() {
    "$environment/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

# MONAI Label has requirements of its own (pydicom 2, numpy 1), so it cannot share the environment of the bundle.
install_monai_label() {
    local versions="$environment/versions.txt"
    [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
    grep '^torch==' "$root/constraints.txt" >"$versions"
    pip install --upgrade pip 'setuptools<81' wheel
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        pip install --index-url "$TORCH_INDEX_URL" -r "$versions" torchvision
    elif nvidia-smi >/dev/null 2>&1 || ! pip install "$(cat "$versions")+cpu" 2>/dev/null; then
        pip install -r "$versions"
    fi
    # SAM-2 is a requirement of MONAI Label that this app does not use: without its CUDA kernels it needs no compiler.
    SAM2_BUILD_CUDA=0 pip install -c "$versions" --no-build-isolation monailabel==0.8.5
    # Newer ones do not work with it. dcmqi brings the tool that writes DICOM SEG; the bundle needs h5py.
    pip install 'pydicom<3' 'pynetdicom<3' 'dicomweb-client[gcp]<0.60' dcmqi 'h5py>=3.12'
    fit_torchvision
}

fit_torchvision() {
    local packages
    if ! "$environment/bin/python" -c 'import torchvision' 2>/dev/null; then
        echo "torchvision is built for another PyTorch: MONAI Label gets by without its operators."
        packages="$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
        cp "$here/torchvision_ops.py" "$packages"
        echo "import torchvision_ops" >"$packages/torchvision_ops.pth"
        "$environment/bin/python" -c 'import torchvision' || fail "torchvision cannot be imported, see above. Set TORCH_INDEX_URL to an index that has PyTorch and torchvision."
    fi
}

if [ ! -f "$environment/ready" ]; then
    echo "Installing MONAI Label into $environment: this takes some minutes."
    install_monai_label
    touch "$environment/ready"
fi

bundle="${1:-}"
if [ -z "$bundle" ]; then
    bash "$root/setup.sh"
    bundle="$root/output/atlas_istn_hippocampus.zip"
    "$root/.venv/bin/python" -m atlas_istn pack "$root/bundle" "$bundle"
fi
"$environment/bin/python" "$here/make_app.py" "$bundle" "$app"
echo "Ready. Start the server: bash deploy/monai_label/start.sh STUDIES"
