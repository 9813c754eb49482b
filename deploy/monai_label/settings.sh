# Read by setup.sh and start.sh: where environment and app are. Set the variables to have them elsewhere.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
environment="${ATLAS_ISTN_LABEL_ENV:-$root/deploy/monai_label/.venv}"
app="${ATLAS_ISTN_LABEL_APP:-$root/output/monai_label}/monaibundle"

fail() {
    echo "error: $*" >&2
    exit 1
}
