#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the fuzzers with clang and runs each for a while. Exit 77 where there is no clang with libFuzzer.
#   sh tests/fuzz/run.sh [--seconds N] [--build FOLDER]
# An input that broke something is left in FOLDER/tests/fuzz/crash-*; `fuzz_wire FILE` or `fuzz_ring FILE`
# repeats it.
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

corpus=$build/tests/fuzz/corpus
mkdir -p "$corpus"
"$build/tests/fuzz/fuzz_wire_seeds" "$corpus"
cd "$build/tests/fuzz"
# One byte more than a packet with its count of descriptors: the size limit is fuzzed too.
./fuzz_wire -max_total_time="$seconds" -max_len=65538 -timeout=5 -rss_limit_mb=512 -print_final_stats=1 \
    -verbosity=0 "$corpus"
echo "fuzz_wire: $seconds s without a finding"

mkdir -p corpus_ring
./fuzz_ring -max_total_time="$seconds" -max_len=2048 -timeout=5 -rss_limit_mb=512 -print_final_stats=1 \
    -verbosity=0 corpus_ring
echo "fuzz_ring: $seconds s without a finding"
