#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh BUILD [--bench] [ARGUMENTS OF PYTEST ...]: the Python tests that need a GPU and PyTorch, with the interpreter
# MLACAT_PYTHON (default python3) and the packages that it has. BUILD is a build folder, or a folder with mlacatd,
# mlacatctl and the wheel. --bench: the figures of bench_torch.py instead. Where the daemon runs under MPS is up to the
# environment (CUDA_MPS_PIPE_DIRECTORY). MLACAT_WHEELS: a folder of wheels, for a machine without pytest. Exits with 77
# where there is no GPU or no PyTorch.
set -u

if [ $# -lt 1 ]; then
    echo "usage: run.sh BUILD [--bench] [ARGUMENTS OF PYTEST ...]" >&2
    exit 2
fi
build=$(cd "$1" && pwd) || exit 1
shift
cd "$(dirname "$0")" || exit 1
python=${MLACAT_PYTHON:-python3}
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "SKIPPED: $python has no torch that sees a GPU"
    exit 77
fi
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
for wheel in "$build"/mlacat-*.whl "$build"/client/python/mlacat-*.whl ${MLACAT_WHEELS:+"$MLACAT_WHEELS"/*.whl}; do
    [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$packages"
done
if [ ! -d "$packages/mlacat" ]; then
    echo "run.sh: no wheel in $build; build the target python_wheel"
    exit 1
fi
unset MLACAT_SOCKET MLACAT_FALLBACK MLACAT_DISABLE
export MLACAT_BUILD="$build" PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
if [ "${1:-}" = --bench ]; then
    shift
    "$python" bench_torch.py "$@"
else
    "$python" -m pytest -q -p no:cacheprovider "$@" .
fi
