#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_install.sh: installs an optimised build into an empty prefix and uses it as a stranger would: builds the README's
# example through pkg-config, through CMake's find_package, and (the header) as C++, and runs it against the installed
# daemon. Nothing of the source tree is on the include or library path.
set -u

cd "$(dirname "$0")/../.." || exit 1
root=$PWD
work=$(mktemp -d)
daemon_pid=''
cleanup() {
    if [ -n "$daemon_pid" ]; then
        kill -KILL "$daemon_pid" 2>/dev/null
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
passed=0 failed=0

check() { # what, command ...
    what=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $what"
    else
        failed=$((failed + 1))
        echo "FAIL  $what"
        sed 's/^/      /' "$work/out"
    fi
}

finish() {
    echo "$passed passed, $failed failed, 0 skipped"
    [ $failed -eq 0 ]
    exit
}

prefix=$work/prefix
# The optimised build with warnings as errors: optimisers see more.
if ! { cmake --preset release -B build/install -DMLACAT_WERROR=ON "-DCMAKE_INSTALL_PREFIX=$prefix" &&
    cmake --build build/install; } >"$work/build" 2>&1; then
    tail -n 60 "$work/build"
    echo "FAIL  the build"
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
check "cmake --install" cmake --install build/install
for file in bin/mlacatd bin/mlacatctl include/mlacat/mlacat.h include/mlacat/mlacat_status.def \
    lib/systemd/system/mlacatd@.service lib/systemd/system/mlacatd@.socket \
    lib/systemd/system/mlacatd@host.socket.d/default-socket.conf lib/sysusers.d/mlacat.conf \
    share/doc/mlacat/docs/mlacatctl.md share/doc/mlacat/deploy/mlacatd.conf; do
    check "installed: $file" test -s "$prefix/$file"
done
for unit in mlacatd@.service mlacatd@.socket; do
    readme=$(sed -n 's,^Documentation=file://,,p' "$prefix/lib/systemd/system/$unit")
    check "$unit names a README that is there" test -s "$readme"
done

libdir=$(dirname "$(find "$prefix" -name libmlacat.so.0 | head -n 1)")
pc=$(find "$prefix" -name mlacat.pc | head -n 1)
export PKG_CONFIG_PATH="${pc%/*}" LD_LIBRARY_PATH="$libdir"

# The example is built away from the sources, so that only installed files can be found.
cp client/examples/concat_mla_k.c "$work/example.c"
printf '#include <mlacat/mlacat.h>\nint main() { return mlacat_version() == nullptr; }\n' >"$work/header.cc"
mkdir "$work/cmake"
cat >"$work/cmake/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.22)
project(stranger C)
find_package(mlacat 0.1 REQUIRED)
add_executable(example ../example.c)
target_link_libraries(example PRIVATE mlacat::mlacat)
END
cd "$work" || exit 1

compile() { # compiler and its arguments ...
    # shellcheck disable=SC2046 # a list of flags
    "$@" $(pkg-config --cflags --libs mlacat)
}

check "the .pc file has this version" pkg-config --exact-version="$(cat "$root/VERSION")" mlacat
check "the example through pkg-config" compile cc -Wall -Wextra -Werror -o example example.c
check "the header in C++" compile g++ -Wall -Wextra -Werror -o header header.cc
check "the C++ program runs" ./header
check "find_package(mlacat)" cmake -S cmake -B cmake/build "-DCMAKE_PREFIX_PATH=$prefix"
check "the example through find_package" cmake --build cmake/build

XDG_RUNTIME_DIR=$work/run
export XDG_RUNTIME_DIR
unset MLACAT_SOCKET
mkdir "$XDG_RUNTIME_DIR"
"$prefix/bin/mlacatd" --device host >"$work/log" 2>&1 & # the example's memory
daemon_pid=$!
tries=0
until "$prefix/bin/mlacatctl" ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -ge 600 ] || ! kill -0 "$daemon_pid" 2>/dev/null; then
        check "the installed daemon starts" sh -c "cat '$work/log'; false"
        finish
    fi
    sleep 0.1
done
check "the installed daemon starts" true
check "the example built through pkg-config runs" ./example
check "the example built through find_package runs" cmake/build/example
check "mlacatctl drain" "$prefix/bin/mlacatctl" drain --wait 60
rc=0
wait "$daemon_pid" || rc=$?
daemon_pid=''
check "the daemon exits with status 0" test $rc -eq 0
finish
