#!/usr/bin/env bash
# Builds the MONAI Application Package, a container image: bash package.sh TAG [OPTION...]
# Options go to `monai-deploy package`. Needs Docker with buildx, and the environment that run.sh makes.
# BUNDLE_DIR, as environment variable, is another bundle to package than the one of this repository.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bin="${ATLAS_ISTN_DEPLOY_BIN:-$here/.venv/bin}"
bundle="${BUNDLE_DIR:-$here/../../bundle}"
[ $# -ge 1 ] || { sed -n 's/^# Builds/Builds/p' "$0" >&2; exit 2; }
build="$(mktemp -d)"
trap 'rm -rf "$build"' EXIT

# The model is the packed bundle: configs, weights and package in one folder.
"$bin/python" -m atlas_istn pack --bundle_dir "$bundle" --output "$build/hippocampus_atlas_istn.zip"
"$bin/python" -m zipfile -e "$build/hippocampus_atlas_istn.zip" "$build/models"
mkdir "$build/app"
cp "$here"/{app,operators,series}.py "$here/app.yaml" "$build/app"
cat "$here/requirements.txt" "$build/models/hippocampus_atlas_istn/requirements.txt" >"$build/app/requirements.txt"

"$bin/monai-deploy" package "$build/app/app.py" --config "$build/app/app.yaml" --models "$build/models" \
    --platform x86_64 --tag "$1" "${@:2}"
