#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh: builds everything for aarch64 and runs the unit and ABI tests under qemu-user. Skipped (77), with the reason,
# where the cross compiler or the aarch64 libraries are not to be had; without qemu the build alone counts.
set -u

cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! command -v aarch64-linux-gnu-gcc >/dev/null 2>&1; then
    echo "aarch64-linux-gnu-gcc is not installed"
    exit 77
fi
if ! sh tests/cross/sysroot.sh build/aarch64-sysroot; then
    echo "the aarch64 libraries cannot be fetched from the apt sources of this machine"
    exit 77
fi
if ! { cmake -S . -B build/aarch64 -G Ninja --toolchain cmake/aarch64-linux-gnu.cmake -DCMAKE_BUILD_TYPE=Release \
    -DMLACAT_SYSROOT="$PWD/build/aarch64-sysroot" && cmake --build build/aarch64; } >"$work/build" 2>&1; then
    tail -n 60 "$work/build"
    echo "the build for aarch64 failed"
    exit 1
fi
for program in build/aarch64/server/mlacatd build/aarch64/client/ctl/mlacatctl; do
    machine=$(aarch64-linux-gnu-readelf -h "$program" | sed -n 's/.*Machine: *//p')
    if [ "$machine" != AArch64 ]; then
        echo "$program is for $machine"
        exit 1
    fi
done
echo "built for aarch64"

if ! command -v qemu-aarch64-static >/dev/null 2>&1 && ! command -v qemu-aarch64 >/dev/null 2>&1; then
    echo "skip  tests: qemu-user is not installed"
    echo "1 passed, 0 failed, 1 skipped"
    exit 0
fi
# Not under the emulator. unit_conn: when a control message is cut, qemu-user leaves descriptors open that the kernel
# would have closed. unit_jit_compile, unit_cuda_jit: their helper is /proc/self/exe, which is the emulator here.
# unit_cuda_{arm,lanes,side,words}: it has no mremap from size 0. unit_ring_pages, unit_client_ring_restart: it keeps
# mprotect and MADV_DONTFORK to itself.
left_out='unit_conn unit_jit_compile unit_cuda_jit unit_cuda_arm unit_cuda_lanes unit_cuda_side unit_cuda_words
    unit_ring_pages unit_client_ring_restart'
# On one CPU. On an x86 machine of several, qemu-user 7.2 lets a load-acquire pass a store-release of another address,
# which the architecture forbids: a thread saw a name whose buffer another one had freed. The threads of one CPU see
# each other's accesses in order.
cpu=$(LC_ALL=C taskset -cp $$ | sed 's/.*: *//; s/[-,].*//')
# shellcheck disable=SC2086 # many words
taskset -c "$cpu" ctest --test-dir build/aarch64 -L 'unit|abi' -LE long -E "^($(echo $left_out | tr ' ' '|'))\$" \
    --output-on-failure --timeout 300 2>&1 | tee "$work/out"
awk -f tests/tally.awk build/aarch64/Testing/Temporary/LastTest.log "$work/out" >"$work/tally"
sed -n 's/^skip /skip  /p' "$work/tally"
# shellcheck disable=SC2046 # three numbers
set -- $(sed -n 's/^count //p' "$work/tally")
skipped=$3
for name in $left_out; do
    echo "skip  $name not what it is under qemu-user"
    skipped=$((skipped + 1))
done
echo "$(($1 + 1)) passed, $2 failed, $skipped skipped"
[ "$2" -eq 0 ]
