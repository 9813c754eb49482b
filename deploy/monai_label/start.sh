#!/usr/bin/env bash
# Starts the MONAI Label server on this machine alone: bash deploy/monai_label/start.sh STUDIES [PORT]
# STUDIES is a folder of NIfTI files, or the address of a DICOMweb store.
# Environment variables: those of setup.sh for the places, and those of MONAI Label (MONAI_LABEL_...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
[ $# -ge 1 ] || fail "no studies given. Usage: start.sh STUDIES [PORT]"
studies="$1" port="${2:-8000}"
[[ "$studies" == http*://* || -d "$studies" ]] || fail "$studies: no such folder. Expected a folder of NIfTI files, or the address of a DICOMweb store."
[ -d "$app/model" ] || fail "$app: no app there. Run setup.sh first."

# MONAI Label calls Python and the tools of dcmqi by name.
export PATH="$environment/bin:$PATH"
# Which series of a DICOMweb store are offered, and where copies of them are kept.
export MONAI_LABEL_DICOMWEB_SEARCH_FILTER="${MONAI_LABEL_DICOMWEB_SEARCH_FILTER:-{\"Modality\": \"MR\"\}}"
export MONAI_LABEL_DICOMWEB_CACHE_PATH="${MONAI_LABEL_DICOMWEB_CACHE_PATH:-$app/dicom}"

models="$(ls "$app/model" | paste -sd,)"
# The loopback address only, since the server asks for no password; "ngc" and "false" keep the start off the network.
exec python -m monailabel.main start_server --app "$app" --studies "$studies" --host 127.0.0.1 --port "$port" \
    --conf models "$models" --conf sam2 false --conf zoo_source ngc
