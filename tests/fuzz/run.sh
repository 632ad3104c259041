#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzzers with clang and runs each for a while. Exit 77 where there is no clang with libFuzzer.
#   sh tests/fuzz/run.sh [--seconds N] [--build FOLDER]
# An input that broke something is left in FOLDER/tests/fuzz/crash-*; `fuzz_wire FILE` or `fuzz_ring FILE`
# repeats it. Those of fuzz_ring's past stand in found_ring/, and are tried first.
set -eu

seconds=30
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build-fuzz
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --build) build=${2:?--build needs a folder}; shift 2 ;;
    *) echo "unknown option $1: usage: sh tests/fuzz/run.sh [--seconds N] [--build FOLDER]" >&2; exit 2 ;;
    esac
done

if ! command -v clang >/dev/null; then
    echo "skipped: fuzzing needs clang (Debian: apt-get install clang)"
    exit 77
fi
if ! echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n; }' |
    clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null; then
    echo "skipped: this clang has no libFuzzer (Debian: apt-get install libclang-rt-dev)"
    exit 77
fi

mkdir -p "$build"
build=$(cd "$build" && pwd)
log=$build/run.log
if ! { cmake -G Ninja -S "$root" -B "$build" -DCMAKE_C_COMPILER=clang -DMLACAT_FUZZ=ON &&
    ninja -C "$build" fuzz_wire fuzz_wire_seeds fuzz_ring; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi

# A finding is exit status 1: libFuzzer's own, 77, would say "skipped".
fuzz() { # program, max_len, folder of inputs
    "./$1" -max_total_time="$seconds" -max_len="$2" -timeout=20 -rss_limit_mb=512 -error_exitcode=1 \
        -timeout_exitcode=1 -print_final_stats=1 -verbosity=0 "$3"
    echo "$1: $seconds s without a finding"
}

cd "$build/tests/fuzz"
mkdir -p corpus corpus_ring
./fuzz_wire_seeds corpus
cp "$root"/tests/fuzz/found_ring/* corpus_ring
# One byte more than a packet with its count of descriptors: the size limit is fuzzed too.
fuzz fuzz_wire 65538 corpus
fuzz fuzz_ring 2048 corpus_ring
