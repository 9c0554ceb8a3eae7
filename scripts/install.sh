#!/bin/sh
# Make .venv and install Tiebreak into it:  scripts/install.sh EXTRAS   (for example: embedded,train)
# Does nothing when pyproject.toml is what it was at the last time. PYTHON=… names an interpreter,
# TORCH_INDEX=… the index that the CPU build of PyTorch comes from (empty: the usual index).
set -eu
cd "$(dirname "$0")/.."
extras=$1
stamp=.venv/.installed-$(echo "$extras" | tr ',' '-')
wanted=$(cksum <pyproject.toml)

fail() {
    echo "tiebreak: $*" >&2
    exit 1
}

suits() { # whether $1 is Python 3.11 or newer and can make virtual environments with pip
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer with the venv module: name another."
        echo "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3 python3.14; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    found=$(python3 -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo "no Python")
    case $found in
    "Python 3.1"[1-9]*) fail "$found has no venv module: install it (on Debian: apt-get install python3-venv)." ;;
    *) fail "Python 3.11 or newer is needed and there is $found: install one, or name it with PYTHON=/path/to/python3." ;;
    esac
}

enough_space() { # PyTorch alone takes 0.7 GB; pip unpacks before it installs
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge 3000 ] || fail "the disk has $free MB free and installing needs 3000: free some space and try again."
}

cpu_torch() { # without an NVIDIA GPU, PyTorch's own CPU build spares gigabytes of CUDA libraries
    [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia ] || return 0
    .venv/bin/python -c 'import torch' 2>/dev/null && return 0
    index=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
    version=$(sed -n 's/.*"\(torch==[0-9.*]*\)".*/\1/p' pyproject.toml)
    reachable='import sys, urllib.request as r; r.urlopen(sys.argv[1] + "/torch/", timeout=5)'
    [ -n "$index" ] && .venv/bin/python -c "$reachable" "$index" 2>/dev/null || return 0
    .venv/bin/pip install $quiet --no-compile --no-deps --index-url "$index" "$version" || true # else from the usual index
}

[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x .venv/bin/tiebreak ] && exit 0
[ -t 1 ] && quiet= || quiet=--quiet
export PIP_DISABLE_PIP_VERSION_CHECK=1
suits .venv/bin/python && [ -x .venv/bin/pip ] || {
    python=$(find_python)
    enough_space
    "$python" -m venv .venv || fail "$python could not make .venv: remove that directory and try again."
}
echo "Installing into .venv with $(.venv/bin/python --version); the first time takes a few minutes …"
case ,$extras, in *,train,*) cpu_torch ;; esac
.venv/bin/pip install $quiet --no-compile --editable ".[$extras]" ||
    fail "installing failed for the reason above: mend that (network, proxy, disk space) and try again."
# pip compiles on one core, and much that nobody imports.
.venv/bin/python -m compileall -q -j 0 -x '/tests?/|/testing/|/transformers/models/' .venv/lib >/dev/null || true
echo "$wanted" >"$stamp"
