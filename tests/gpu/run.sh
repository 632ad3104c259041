#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh            tests the kernels and the service on this machine's GPU, without and with a private MPS daemon
# run.sh --bench    and measures them against the driver's copy
#
# Needs the driver, NVRTC and what deploy/install-deps.sh installs. Prints SKIPPED with the reason, and exits with 77,
# where there is no GPU. compute-sanitizer and MPS are used where they are installed; what is left out is printed.
# MLACAT_GPU_BUILD: a folder that holds the programs already (default: they are built in build/gpu).
set -u

cd "$(dirname "$0")/../.." || exit 1
failed=0
mps=

skip() {
    echo "SKIPPED: $1"
    exit 77
}

run() { # title, command ...
    echo "== $1"
    shift
    timeout -k 2 120 "$@" </dev/null
    rc=$?
    if [ $rc -eq 77 ]; then
        exit 77 # the reason is printed
    elif [ $rc -ne 0 ]; then
        echo "FAILED with status $rc: $*"
        failed=1
    fi
    echo
}

stop_mps() {
    [ -n "$mps" ] && echo quit | timeout -k 2 20 "$mps" >/dev/null 2>&1
    [ -n "${CUDA_MPS_PIPE_DIRECTORY:-}" ] && rm -rf "$work"
    mps=
}

service() { # label
    for case in ops chunks lies new_memory give_back library speed death; do
        run "the service, $1: $case" env MLACATD="$daemon" "$programs/gpu_service" "$case"
    done
}

[ -e /dev/nvidiactl ] || skip "no NVIDIA GPU: /dev/nvidiactl is not there"
if [ -n "${MLACAT_GPU_BUILD:-}" ]; then
    programs=$MLACAT_GPU_BUILD
    daemon=$programs/mlacatd
else
    cmake -S . -B build/gpu -DCMAKE_BUILD_TYPE=Release >/dev/null &&
        cmake --build build/gpu --target kernel_matrix bench_cuda_kernel gpu_service mlacatd || exit 1
    programs=build/gpu/tests/gpu
    daemon=$PWD/build/gpu/server/mlacatd
fi

run "kernel matrix" "$programs/kernel_matrix" . all

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$sanitizer" ]; then
    run "kernel matrix under compute-sanitizer memcheck" "$sanitizer" --tool memcheck --error-exitcode 9 \
        "$programs/kernel_matrix" . tight
else
    echo "left out: compute-sanitizer is not installed"
fi

service "no MPS"
mps=$(command -v nvidia-cuda-mps-control ||
    find /usr /opt -name nvidia-cuda-mps-control -type f 2>/dev/null | head -n 1)
if [ -n "$mps" ]; then
    work=$(mktemp -d)
    export CUDA_MPS_PIPE_DIRECTORY="$work/pipe" CUDA_MPS_LOG_DIRECTORY="$work/log"
    mkdir "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    trap stop_mps EXIT
    trap 'exit 130' INT TERM
    timeout -k 2 20 "$mps" -d </dev/null >/dev/null 2>&1
    service "MPS"
    stop_mps
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
else
    echo "left out: nvidia-cuda-mps-control is not installed"
fi

if [ "${1:-}" = --bench ]; then
    run "kernels against the driver's copy" "$programs/bench_cuda_kernel" . 9
fi

if [ $failed -ne 0 ]; then
    echo "FAILED"
    exit 1
fi
echo "all GPU tests passed"
