#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# pack.sh DIR: builds everything that tests/gpu/run.sh runs and puts it into DIR, flat and without debug information,
# with the Python wheel, and with the shared libraries that a GPU host may lack in DIR/lib. DIR and the source tree are
# then enough there:
#
#     MLACAT_GPU_BUILD=DIR sh tests/gpu/run.sh
#
# MLACAT_GPU_CMAKE: the build folder (default build/gpu). The C library is the host's: build on one that is not newer.
set -u

if [ $# -ne 1 ]; then
    echo "usage: pack.sh DIR" >&2
    exit 2
fi
mkdir -p "$1/lib" || exit 1
to=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.." || exit 1
build=${MLACAT_GPU_CMAKE:-build/gpu}
programs="mlacatd mlacatctl kernel_matrix bench_cuda_kernel bench_start gpu_service gpu_order gpu_isolation gpu_faults
    contract_gpu_calls contract_gpu_ops contract_gpu_order system_calls system_order system_client_death system_drain
    system_limits system_buffers system_library system_restart system_ring system_ring_death system_ring_hostile
    system_ring_waits ctl_cuda"

# shellcheck disable=SC2086 # many words
if ! { cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release &&
    cmake --build "$build" --target $programs mlacat_in_process python_wheel; } >"$to/build.log" 2>&1; then
    tail -n 40 "$to/build.log"
    echo "pack.sh: the build failed"
    exit 1
fi

for program in $programs; do
    from=$(find "$build" -name "$program" -type f -perm -u+x | head -n 1)
    strip --strip-unneeded -o "$to/$program" "$from" || exit 1
    ldd "$from" | awk '$3 ~ /^\// { print $1, $3 }'
done | sort -u | grep -E '^lib(uv|protobuf-c|inih|cmocka|jansson|mlacat)\.so' >"$to/libraries"
echo libmlacat_in_process.so "$build/tests/gpu/libmlacat_in_process.so" >>"$to/libraries"
while read -r name path; do
    strip --strip-unneeded -o "$to/lib/$name" "$path" || exit 1
done <"$to/libraries"
rm "$to/libraries"
for program in $programs; do
    [ -x "$to/$program" ] || exit 1
done
rm -f "$to"/mlacat-*.whl
cp "$build"/client/python/mlacat-*.whl "$to" || exit 1
echo "$to: $(du -sm "$to" | cut -f 1) MiB"
