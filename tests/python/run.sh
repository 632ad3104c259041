#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh BUILD [ARGUMENTS OF PYTEST ...]: installs the wheel of that build into an environment of its own
# (BUILD/python-venv, kept) and runs the Python tests against the build's daemon. Exits with 77, and says why, where
# Python or its packages cannot be had. MLACAT_PYTHON: the interpreter (default python3).
set -u

if [ $# -lt 1 ]; then
    echo "usage: run.sh BUILD [ARGUMENTS OF PYTEST ...]" >&2
    exit 2
fi
build=$(cd "$1" && pwd) || exit 1
shift
cd "$(dirname "$0")" || exit 1
python=${MLACAT_PYTHON:-python3}

skip() {
    echo "SKIPPED: $1"
    exit 77
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || skip "no Python 3.10 or later ($python)"
venv=$build/python-venv
if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" || skip "$python cannot make an environment (Debian: python3-venv)"
fi
if ! "$venv/bin/python" -c 'import numpy, ml_dtypes, pytest' 2>/dev/null; then
    # An index that hangs: the suite is skipped, before ctest's time limit fails it.
    timeout 120 "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 2 numpy ml_dtypes pytest ||
        skip "numpy, ml_dtypes and pytest cannot be installed from the package index"
fi
wheel=$(ls "$build"/client/python/mlacat-*.whl) || exit 1
"$venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps --no-index "$wheel" || exit 1

# The fake driver of this build plays the GPU, for the client and its daemon.
fake=$build/tests/support/fake_cuda
if [ -e "$fake/libcuda.so.1" ]; then
    export MLACAT_FAKE_CUDA_FOLDER="$fake" LD_LIBRARY_PATH="$fake${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
unset MLACAT_SOCKET MLACAT_FALLBACK MLACAT_DISABLE
export MLACAT_BUILD="$build" PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --ignore=gpu "$@"
