#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh [--only WORDS] [--isolation SECONDS] [--bench] [--python]
#
# Tests the kernels and the service on this machine's GPU, everything but the kernels themselves without and with a
# private MPS daemon, in less than 5 minutes: what is not about time runs side by side. A table at the end says how each
# step went.
#
#   --only WORDS           only the steps whose name contains them: "isolation", "MPS system", "plain faults two_gpus"
#   --isolation SECONDS    how long the well-behaved clients are measured beside the bad ones (default 12)
#   --python               the Python package beside torch too
#   --bench                measures as well: kernels and calls against the driver's copy, starts, torch where it is
#
# Needs the driver, NVRTC and what deploy/install-deps.sh installs, or a folder of pack.sh in MLACAT_GPU_BUILD. Prints
# SKIPPED with the reason, and exits with 77, where there is no GPU. compute-sanitizer and MPS are used where they are
# installed; what is left out is printed. MLACAT_GPU_OUT: where logs and results go (default build/gpu-out).
set -u

only=''
bench=false
python=false
isolation=12
while [ $# -gt 0 ]; do
    case $1 in
    --bench) bench=true ;;
    --python) python=true ;;
    --only | --isolation)
        [ $# -gt 1 ] || {
            echo "run.sh: $1 needs a value" >&2
            exit 2
        }
        if [ "$1" = --only ]; then only=$2; else isolation=$2; fi
        shift
        ;;
    *)
        echo "usage: run.sh [--only WORDS] [--isolation SECONDS] [--bench] [--python]" >&2
        exit 2
        ;;
    esac
    shift
done

cd "$(dirname "$0")/../.." || exit 1
if [ ! -e /dev/nvidiactl ] && [ -z "${MLACAT_FAKE_CUDA:-}" ]; then
    echo "SKIPPED: no NVIDIA GPU: /dev/nvidiactl is not there"
    exit 77
fi
out=${MLACAT_GPU_OUT:-build/gpu-out}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
if [ -z "${MLACAT_GPU_BUILD:-}" ]; then
    MLACAT_GPU_BUILD=build/gpu-packed
    sh tests/gpu/pack.sh "$MLACAT_GPU_BUILD" || exit 1
fi
programs=$(cd "$MLACAT_GPU_BUILD" && pwd) || exit 1
work=$(mktemp -d)
export PATH="$programs:$PATH" LD_LIBRARY_PATH="$programs/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export MLACATD="$programs/mlacatd" MLACATCTL="$programs/mlacatctl" MLACAT_GPU_ROOT="$PWD" XDG_CACHE_HOME="$work/cache"
export XDG_RUNTIME_DIR="$work" # where the daemon of `serve` and its clients meet
unset MLACAT_SOCKET
mkdir "$XDG_CACHE_HOME"
: >"$work/table"
: >"$work/started"
all_began=$(date +%s)
head -n 1 /proc/driver/nvidia/version 2>/dev/null # for who notes the figures
failed=0
mode=plain
mps=''
daemon_pid=''
started_pids=''

stop_mps() {
    if [ -n "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
        echo quit | timeout -k 2 20 "$mps" >/dev/null 2>&1
    fi
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
}

start_mps() {
    mkdir -p "$work/mps/pipe" "$work/mps/log"
    export CUDA_MPS_PIPE_DIRECTORY="$work/mps/pipe" CUDA_MPS_LOG_DIRECTORY="$work/mps/log"
    timeout -k 2 20 "$mps" -d </dev/null >/dev/null 2>&1
}

cleanup() {
    for pid in $daemon_pid $started_pids; do
        kill "$pid" 2>/dev/null
    done
    stop_mps
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

wanted() { # name
    case "$mode $1" in
    *"$only"*) return 0 ;;
    esac
    return 1
}

note() { # name, how it went, seconds
    printf '%s|%s|%s|%s\n' "$1" "$mode" "$2" "$3" >>"$work/table"
}

log_of() { # name
    echo "$out/$(echo "$mode $1" | tr ' ' '_').log"
}

# Leaves what the command printed in its log, and its status and its seconds in a file of $work.
perform() { # name, seconds at most, command ...
    log=$(log_of "$1")
    limit=$2
    shift 2
    began=$(date +%s)
    timeout -k 2 "$limit" "$@" </dev/null >"$log" 2>&1
    echo "$? $(($(date +%s) - began))" >"$work/end_$(basename "$log")"
}

# Says how a step went that has ended. Of one that failed the end of its log is shown, of one that measures all.
tell() { # show | quiet, name
    log=$(log_of "$2")
    read -r rc took <"$work/end_$(basename "$log")"
    case $rc in
    0) how=ok ;;
    77) how=skipped ;;
    75) how="NOT JUDGED" ;;
    124 | 137) how="TIMEOUT" ;;
    *) how="FAILED $rc" ;;
    esac
    note "$2" "$how" "$took"
    echo "== $mode: $2: $how, $took s"
    if [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ]; then
        failed=1
        grep -v '^\[ *\(RUN\|OK\|  *OK\) *\]' "$log" | grep -v 'level=info' | tail -n 50 | cut -c 1-400 | sed 's/^/   /'
    elif [ "$1" = show ]; then
        grep -v '^time=' "$log" | sed 's/^/   /'
    else
        grep -E '^ *(left out|SKIPPED)|^[0-9]+ (passed|failed)' "$log" | sed 's/^/   /'
    fi
}

step() { # show | quiet, name, seconds at most, command ...
    wanted "$2" || return 0
    show=$1
    shift
    perform "$@"
    tell "$show" "$1"
}

# A step that is not about time: it runs beside the others that were started, until `finish`.
start() { # name, seconds at most, command ...
    wanted "$1" || return 0
    perform "$@" &
    started_pids="$started_pids $!"
    echo "$1" >>"$work/started"
}

finish() {
    # shellcheck disable=SC2086 # many words
    [ -z "$started_pids" ] || wait $started_pids
    started_pids=''
    while read -r started; do
        tell quiet "$started"
    done <"$work/started"
    : >"$work/started"
}

# What the service does, in the mode that the machine is in. Under MPS processes share about a hundred connections to
# the GPU, of which a daemon takes 32: those that run beside each other take 4, and run in three groups.
service() {
    [ -n "${MLACAT_FAKE_CUDA:-}" ] || step show "service speed" 60 gpu_service speed
    # Alone: it looks at how much of the GPU's memory is free, of which one more process takes half a GiB.
    step show "service give_back" 60 gpu_service give_back
    for part in calls ops order; do
        start "contract $part" 120 env CUDA_DEVICE_MAX_CONNECTIONS=4 contract_gpu_$part
    done
    start "service" 120 env MLACAT_TEST_CONNECTIONS=4 \
        gpu_service ops chunks lies new_memory library watch events death
    for suite in calls client_death drain limits buffers; do
        start "system $suite" 120 env MLACAT_TEST_DEVICE=cuda MLACAT_TEST_CONNECTIONS=4 "system_$suite"
    done
    start "mlacatctl" 120 env MLACAT_TEST_CONNECTIONS=4 ctl_cuda
    finish
    for suite in calls client_death drain limits buffers; do
        start "system $suite, rings" 120 env MLACAT_TEST_DEVICE=cuda MLACAT_TEST_CONNECTIONS=4 \
            MLACAT_TEST_TRANSPORT=ring "system_$suite"
    done
    finish
    for suite in library restart ring ring_death ring_hostile ring_waits; do
        start "system $suite" 120 env MLACAT_TEST_DEVICE=cuda MLACAT_TEST_CONNECTIONS=4 "system_$suite"
    done
    for suite in library restart; do
        start "system $suite, messages" 120 env MLACAT_TEST_DEVICE=cuda MLACAT_TEST_CONNECTIONS=4 \
            MLACAT_TRANSPORT=message "system_$suite"
    done
    finish
    # Alone: it looks at calls while a long one runs, which on a machine that is busy ends before it looks.
    step quiet "system order" 120 env MLACAT_TEST_DEVICE=cuda system_order
    step quiet "system order, rings" 120 env MLACAT_TEST_DEVICE=cuda MLACAT_TEST_TRANSPORT=ring system_order
    step show "stream order" 90 gpu_order
    if $python; then
        step quiet "python" 240 env MLACAT_LIMIT=225 sh tests/python/gpu/run.sh "$programs" --out "$out/python_$mode"
    fi
    for case in neighbour daemon_killed give_back out_of_memory two_gpus; do
        step show "faults $case" 60 gpu_faults $case
    done
    measure_isolation
}

# Again, up to three times, where others on the machine's host kept it from being judged.
measure_isolation() {
    wanted isolation || return 0
    for try in first second last; do
        perform isolation $((isolation * 2 + 60)) gpu_isolation --seconds "$isolation"
        read -r rc took <"$work/end_$(basename "$(log_of isolation)")"
        if [ "$rc" -ne 75 ] || [ "$try" = last ]; then
            break
        fi
        echo "== $mode: isolation: not judged at the $try try, $took s"
        cp "$(log_of isolation)" "$out/${mode}_isolation_$try.log"
    done
    tell show isolation
}

# Runs a step beside a daemon on the GPU.
serve() { # as step
    wanted "$2" || return 0
    mlacatd --device auto >"$out/daemon.log" 2>&1 &
    daemon_pid=$!
    tries=0
    until mlacatctl ping >/dev/null 2>&1 || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    step "$@"
    kill "$daemon_pid" 2>/dev/null
    wait "$daemon_pid" 2>/dev/null
    daemon_pid=''
}

measure() {
    step show "bench kernels" 120 bench_cuda_kernel . 9
    step show "bench start" 120 bench_start
    serve show "bench calls" 200 mlacatctl bench --histogram "$out/${mode}_latency.json"
    serve show "doctor" 60 mlacatctl doctor
    if python3 -c 'import torch' 2>/dev/null; then
        if $python; then
            step show "bench python" 120 sh tests/python/gpu/run.sh "$programs" --bench
        fi
        step show "bench torch" 300 python3 -B tests/bench/compare_torch.py --library "$programs/lib/libmlacat.so.0" \
            --daemon "$programs/mlacatd" --out "$out"
    else
        echo "left out: python3 has no torch"
    fi
}

start "kernel matrix" 150 kernel_matrix . all
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$sanitizer" ]; then
    start "kernel matrix, memcheck" 150 "$sanitizer" --tool memcheck --error-exitcode 9 \
        "$programs/kernel_matrix" . tight
else
    echo "left out: compute-sanitizer is not installed"
fi
finish
service
if $bench; then
    measure
fi
mps=$(command -v nvidia-cuda-mps-control ||
    find /usr /opt -name nvidia-cuda-mps-control -type f 2>/dev/null | head -n 1)
if [ -n "$mps" ] && start_mps; then
    mode=MPS
    service
    if $bench; then
        measure
    fi
    step show "faults sticky" 120 gpu_faults sticky # the last one: MPS may be of no use for seconds after it
    stop_mps
else
    echo "left out: nvidia-cuda-mps-control is not installed, or does not start: nothing was run under MPS"
fi
$python || echo "left out: the Python package (--python)"
echo "left out: what is about memfds in the contract and system suites; the contract of faults and of a poll's length"

if [ ! -s "$work/table" ]; then
    echo "run.sh: no step's name contains \"$only\""
    exit 2
fi
echo
awk -F '|' -v all=$(($(date +%s) - all_began)) '
    !($1 in seen) { seen[$1] = ++nr; names[nr] = $1 }
    { how[$1, $2] = $3; took[$1, $2] = $4 }
    END {
        printf "%-26s %-12s %-12s %8s\n", "step", "no MPS", "MPS", "seconds"
        for (i = 1; i <= nr; i++) {
            n = names[i]
            printf "%-26s %-12s %-12s %8d\n", n, (n, "plain") in how ? how[n, "plain"] : "-",
                   (n, "MPS") in how ? how[n, "MPS"] : "-", took[n, "plain"] + took[n, "MPS"]
        }
        printf "%-52s %8d\n", "all, some beside each other", all
    }' "$work/table"
echo "logs: $out"
if [ $failed -ne 0 ]; then
    echo "FAILED"
    exit 1
fi
echo "all GPU tests passed"
