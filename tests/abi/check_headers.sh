#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_headers.sh ROOT CC CXX BUILD: compiles every header alone.
#
# Public headers (client/include, proto) as C11 and as C++17 without extensions, each seeing only what is installed
# with it. Private headers as the project's own C, each seeing only the folders to its left: a header that leans on
# what its users happen to include first, or on a folder to its right, fails here.
set -u

root=$1 cc=$2 cxx=$3 build=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

alone() { # header, name, compiler and flags ...
    header=$1 name=$2
    shift 2
    # Twice: the include guard is part of the check.
    printf '#include "%s"\n#include "%s"\n' "$header" "$header" >"$work/alone.${name%%:*}"
    if "$@" -Wall -Wextra -Werror -fsyntax-only "$work/alone.${name%%:*}" 2>"$work/err"; then
        passed=$((passed + 1))
    else
        echo "$header does not compile alone as ${name#*:}:"
        cat "$work/err"
        failed=$((failed + 1))
    fi
}

# What an installed tree looks like: the tables stand beside mlacat.h.
mkdir -p "$work/include/mlacat"
cp "$root"/client/include/mlacat/*.h "$root"/proto/*.def "$root"/proto/*.h "$work/include/mlacat/"
for header in "$work"/include/mlacat/*.h; do
    public=mlacat/$(basename "$header")
    alone "$public" c:C11 "$cc" -std=c11 -pedantic -I "$work/include"
    alone "$public" cc:C++17 "$cxx" -x c++ -std=c++17 -pedantic -I "$work/include"
done

private() { # folder ...: the last one's headers, seeing all of them
    folder=
    set -- "$@" ""
    flags=
    while [ -n "$1" ]; do
        folder=$1
        flags="$flags -I$root/$folder"
        shift
    done
    for header in "$root/$folder"/*.h; do
        [ -e "$header" ] || continue
        # shellcheck disable=SC2086 # a list of flags
        alone "$(basename "$header")" c:"C11 in $folder" "$cc" -std=gnu11 -D_GNU_SOURCE $flags -isystem "$build/proto"
    done
}

private kernels
private proto server/base
private proto server/base server/model
private proto kernels server/base server/model server/device
private proto kernels server/base server/model server/device server/engine
private proto kernels server/base server/model server/device server/engine server/net
private proto kernels server/base server/model server/device server/engine server/net server/top
private proto client/include client/src

echo "headers compiled alone: $passed passed, $failed failed"
[ $failed -eq 0 ]
