# Sourced by the programs beside it: makes or reuses .venv in the checkout, with everything that they need, and sets ROOT.
# A CPU build of torch that is already in .venv is kept, which spares a computer without a GPU the CUDA packages.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "rtdsae needs Python 3.11 or newer with venv (Debian: python3-venv): install it, or set PYTHON to its path" >&2
    return 1
}

set_up() {
    cd "$ROOT"
    local wanted stamp=.venv/rtdsae-installed constraints=tools/constraints.txt
    wanted=$(cat pyproject.toml $constraints | sha256sum)
    if [ -x .venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Setting up $ROOT/.venv (some minutes the first time) ..."
    if [ ! -x .venv/bin/python ]; then
        local python
        python=$(find_python) || return 1
        "$python" -m venv .venv || { rm -rf .venv; return 1; }
    fi
    local install=".venv/bin/python -m pip install --quiet --constraint $constraints"
    $install --upgrade pip
    # torch first and by its exact version: a range would take a newer and larger build.
    .venv/bin/python -c 'import torch' 2>/dev/null || $install "$(grep '^torch==' $constraints)"
    $install --group dev --editable '.[all]'
    echo "$wanted" > $stamp
}

(set -e; set_up)
