# Sourced by the programs beside it: makes or reuses .venv in the checkout, with everything that they need.
# A CPU build of torch that is already in .venv is kept, which spares a computer without a GPU the CUDA packages.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

find_python() {
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "rtdsae needs Python 3.11 or newer with venv: install it, or set PYTHON to its path" >&2
    return 1
}

set_up() {
    local wanted stamp=.venv/rtdsae-installed
    wanted=$(cat pyproject.toml tools/constraints.txt | sha256sum)
    if [ -x .venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "Setting up .venv (some minutes the first time) ..."
    [ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
    .venv/bin/python -m pip install --quiet --upgrade --constraint tools/constraints.txt pip
    # torch first and by its exact version: a range would take a newer and larger build.
    .venv/bin/python -c 'import torch' 2>/dev/null ||
        .venv/bin/python -m pip install --quiet --constraint tools/constraints.txt "$(grep '^torch==' tools/constraints.txt)"
    .venv/bin/python -m pip install --quiet --constraint tools/constraints.txt --group dev --editable '.[all]'
    echo "$wanted" > $stamp
}

set_up
