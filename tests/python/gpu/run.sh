#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh BUILD [--bench] [--mps] [--out FOLDER] [ARGUMENTS OF PYTEST OR bench_torch.py ...]: the Python tests that need
# a GPU and PyTorch, with the interpreter MLACAT_PYTHON (default python3) and the packages that it has. BUILD is a build
# folder, or a folder with mlacatd, mlacatctl and the wheel.
#
#   --bench        the figures of bench_torch.py instead
#   --mps          under an MPS daemon of its own (else: as the environment says, CUDA_MPS_PIPE_DIRECTORY)
#   --out FOLDER   where the results go (default: a temporary one): `ledger` has a line for each test as it ends,
#                  `failures` what is known of each that failed, junit-N.xml and stacks.txt what pytest and a test that
#                  hung left
#
# A test that hangs or leaves CUDA of no use ends its pytest; the ones after it go on in another. MLACAT_LIMIT: seconds
# after which no more is run (default 300). MLACAT_WHEELS: a folder of wheels, for a machine without pytest. Exits with
# 77 where there is no GPU or no PyTorch.
set -u

if [ $# -lt 1 ]; then
    echo "usage: run.sh BUILD [--bench] [--mps] [--out FOLDER] [ARGUMENTS OF PYTEST OR bench_torch.py ...]" >&2
    exit 2
fi
build=$(cd "$1" && pwd) || exit 1
shift
bench=false
mps=false
out=''
while [ $# -gt 0 ]; do
    case $1 in
    --bench) bench=true ;;
    --mps) mps=true ;;
    --out)
        [ $# -gt 1 ] || {
            echo "run.sh: --out needs a folder" >&2
            exit 2
        }
        mkdir -p "$2" || exit 1
        out=$(cd "$2" && pwd)
        shift
        ;;
    *) break ;;
    esac
    shift
done

cd "$(dirname "$0")" || exit 1
python=${MLACAT_PYTHON:-python3}
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "SKIPPED: $python has no torch that sees a GPU"
    exit 77
fi
work=$(mktemp -d)
control=''
clean_up() {
    [ -z "$control" ] || echo quit | timeout -k 2 20 "$control" >/dev/null 2>&1
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
[ -n "$out" ] || out=$work

# What pack.sh puts beside the programs.
[ ! -d "$build/lib" ] || export LD_LIBRARY_PATH="$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir "$work/packages"
for wheel in "$build"/mlacat-*.whl "$build"/client/python/mlacat-*.whl ${MLACAT_WHEELS:+"$MLACAT_WHEELS"/*.whl}; do
    [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$work/packages"
done
if [ ! -d "$work/packages/mlacat" ]; then
    echo "run.sh: no wheel in $build; build the target python_wheel"
    exit 1
fi
if $mps; then
    control=$(command -v nvidia-cuda-mps-control ||
        find /usr /opt -name nvidia-cuda-mps-control -type f 2>/dev/null | head -n 1)
    mkdir -p "$work/mps/pipe" "$work/mps/log"
    export CUDA_MPS_PIPE_DIRECTORY="$work/mps/pipe" CUDA_MPS_LOG_DIRECTORY="$work/mps/log"
    if [ -z "$control" ] || ! timeout -k 2 20 "$control" -d </dev/null >/dev/null 2>&1; then
        echo "run.sh: nvidia-cuda-mps-control is not installed, or does not start"
        control=''
        exit 1
    fi
fi
unset MLACAT_SOCKET MLACAT_FALLBACK MLACAT_DISABLE
export MLACAT_BUILD="$build" PYTHONPATH="$work/packages${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
limit=${MLACAT_LIMIT:-300}

if $bench; then
    timeout -k 5 "$limit" "$python" bench_torch.py "$@"
    exit
fi

export MLACAT_LEDGER="$out"
rm -f "$out/ledger" "$out/failures" "$out/stacks.txt"
until=$(($(date +%s) + limit))
for attempt in 1 2 3 4 5 6; do
    left=$((until - $(date +%s)))
    [ $left -gt 0 ] || break
    timeout -k 5 $left "$python" -m pytest -q -p no:cacheprovider --junitxml="$out/junit-$attempt.xml" "$@" .
    tail -n 1 "$out/ledger" 2>/dev/null | grep -q '^END' && break
    # A usage error, or a test module that cannot be imported: no other attempt will do better.
    [ -e "$out/ledger" ] || exit 1
done
awk '
    $1 == "START" { running = $3 }
    $1 == "DONE" { running = "" }
    $1 == "END" { ended = 1 }
    $1 == "passed" || $1 == "failed" || $1 == "skipped" { nr[$1]++ }
    END {
        printf "%d passed, %d failed, %d skipped, all attempts together%s%s\n",
               nr["passed"], nr["failed"], nr["skipped"],
               ended ? "" : "; NOT ALL RAN", running == "" ? "" : ", the last one was " running
        exit !ended || nr["failed"] > 0
    }' "$out/ledger"
status=$?
grep '^failed' "$out/ledger"
exit $status
