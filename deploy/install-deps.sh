#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# install-deps.sh build|test|all: makes sure that the tools and libraries are there.
#
#   build  what compiles the service          (deploy/demo.sh)
#   test   and what the tests need            (tests/run.sh)
#   all    and what only the long run needs   (tests/run.sh --all)
#
# Each need is probed as it will be used, so a tool that came from elsewhere counts. On Debian and Ubuntu what is
# missing is installed, as root or with sudo, without a question; elsewhere, or without the right to install, the
# missing things are named and the exit status is 1. A need marked "wish" is installed where the distribution has it;
# tests that cannot do without it are skipped and say so.
set -eu

level=${1:-build}
case $level in
build | test | all) ;;
*)
    echo "usage: install-deps.sh build|test|all" >&2
    exit 2
    ;;
esac

# level  must|wish  probe:name  Debian package
needs() {
    cat <<'END'
build must command:cc          gcc
build must command:cmake       cmake
build must command:ninja       ninja-build
build must command:pkg-config  pkg-config
build must libc:stdio.h        libc6-dev
build must command:protoc-c    protobuf-c-compiler
build must module:libuv        libuv1-dev
build must module:libprotobuf-c libprotobuf-c-dev
build must module:inih         libinih-dev
build must module:jansson      libjansson-dev
test  must command:gcc         gcc
test  must command:g++         g++
test  must command:nm          binutils
test  must module:cmocka       libcmocka-dev
test  wish command:clang       clang
test  wish clang:address       libclang-rt-dev
test  wish command:clang-format-14 clang-format-14
test  wish command:shellcheck  shellcheck
test  wish command:systemd-analyze systemd
test  wish python:yaml         python3-yaml
test  wish python:venv,ensurepip python3-venv
test  wish pyheader:Python.h   python3-dev
all   wish command:aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
all   wish libc64:stdio.h      libc6-dev-arm64-cross
all   wish command:qemu-aarch64-static qemu-user-static
END
}

wanted() { # need's level
    case $level:$1 in
    all:* | test:build | test:test | build:build) return 0 ;;
    *) return 1 ;;
    esac
}

compiles() { # compiler, header, flags ...
    compiler=$1 header=$2
    shift 2
    command -v "$compiler" >/dev/null 2>&1 || return 1
    probe_dir=$(mktemp -d)
    printf '#include <%s>\nint main(void) { return 0; }\n' "$header" >"$probe_dir/probe.c"
    result=0
    "$compiler" "$@" -o "$probe_dir/probe" "$probe_dir/probe.c" >/dev/null 2>&1 || result=1
    rm -rf "$probe_dir"
    return $result
}

present() { # probe:name
    case $1 in
    command:*) command -v "${1#*:}" >/dev/null 2>&1 ;;
    module:*) command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "${1#*:}" ;;
    libc:*) compiles cc "${1#*:}" ;;
    libc64:*) compiles aarch64-linux-gnu-gcc "${1#*:}" ;;
    clang:*) compiles clang stddef.h "-fsanitize=${1#*:}" ;;
    python:*) command -v python3 >/dev/null 2>&1 && python3 -c "import ${1#*:}" >/dev/null 2>&1 ;;
    pyheader:*) python3 -c "import os, sysconfig as s; os.stat(s.get_path('include') + '/${1#*:}')" >/dev/null 2>&1 ;;
    esac
}

describe() { # probe:name, package
    case $1 in
    command:*) echo "  ${1#*:} (program; Debian package $2)" ;;
    module:*) echo "  ${1#*:} (library with headers and ${1#*:}.pc for pkg-config; Debian package $2)" ;;
    *) echo "  ${1#*:} of ${1%%:*} (Debian package $2)" ;;
    esac
}

# Prints "must|wish probe package" for each thing that is missing.
missing() {
    needs | while read -r at kind probe package; do
        if wanted "$at" && ! present "$probe"; then
            echo "$kind $probe $package"
        fi
    done
}

packages_of() { # lines of missing(), on stdin
    while read -r kind probe package; do
        echo "$package"
    done | sort -u | tr '\n' ' '
}

give_up() { # why
    must=$(missing | grep '^must' || true)
    if [ -z "$must" ]; then
        return 0
    fi
    {
        echo "install-deps.sh: $1. Missing:"
        echo "$must" | while read -r kind probe package; do
            describe "$probe" "$package"
        done
        echo "On Debian or Ubuntu: apt-get install $(echo "$must" | packages_of)"
    } >&2
    exit 1
}

absent=$(missing)
if [ -z "$absent" ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    give_up "this machine is not Debian or Ubuntu, so nothing was installed"
    exit 0
fi
if [ "$(id -u)" -eq 0 ]; then
    as_root="env"
elif command -v sudo >/dev/null 2>&1 && sudo -n true >/dev/null 2>&1; then
    as_root="sudo -n env"
else
    give_up "neither root nor sudo without a password, so nothing was installed"
    exit 0
fi

apt_get() {
    $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
        -o Dpkg::Use-Pty=0 "$@" </dev/null
}

has_candidate() { # package
    apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'
}

# Only packages that the lists know, so that one that this release does not have does not stop the others.
known_packages() {
    for package in $(echo "$absent" | packages_of); do
        if has_candidate "$package"; then
            echo "$package"
        fi
    done
}

# One package that cannot be fetched keeps apt from all of them: first what must come, then each wish by itself.
install_apart() {
    absent=$(missing | grep '^must' || true)
    # shellcheck disable=SC2046 # a list of words
    set -- $(known_packages)
    if [ $# -gt 0 ] && ! apt_get install --no-install-recommends "$@"; then
        return 0
    fi
    absent=$(missing)
    for package in $(known_packages); do
        apt_get install --no-install-recommends "$package" || true
    done
}

unknown=false
for package in $(echo "$absent" | packages_of); do
    has_candidate "$package" || unknown=true
done
if $unknown; then
    apt_get update || true
fi
# shellcheck disable=SC2046 # a list of words
set -- $(known_packages)
if [ $# -gt 0 ]; then
    echo "install-deps.sh: installing $*"
    # Old lists name files that the mirror no longer has: then once more with new ones.
    # What still does not come is judged below: only what the level must have stops it.
    apt_get install --no-install-recommends "$@" || {
        apt_get update || true
        apt_get install --no-install-recommends "$@" || install_apart
    }
fi

give_up "the packages did not bring everything"
