#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sysroot.sh DIR: unpacks the aarch64 libraries that a cross-build needs into DIR.
#
# The packages come from this machine's own apt sources, through an apt state of its own in DIR/.apt: no root, no
# foreign architecture added to the machine, nothing installed. The C library is not among them: gcc-aarch64-linux-gnu
# brings it.
set -eu

packages="libuv1 libuv1-dev libprotobuf-c1 libprotobuf-c-dev libinih1 libinih-dev libjansson4 libjansson-dev
    libcmocka0 libcmocka-dev"

if [ $# -ne 1 ]; then
    echo "usage: sysroot.sh DIR" >&2
    exit 2
fi
if [ -e "$1/complete" ]; then
    exit 0
fi
for tool in apt-get dpkg-deb; do
    if ! command -v $tool >/dev/null 2>&1; then
        echo "sysroot.sh: needs $tool (a Debian or Ubuntu machine)" >&2
        exit 1
    fi
done

mkdir -p "$1/.apt/lists/partial" "$1/.apt/archives/partial"
root=$(cd "$1" && pwd)
: >"$root/.apt/status"

foreign_apt() {
    apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$root/.apt" \
        -o Dir::State::lists="$root/.apt/lists" -o Dir::State::status="$root/.apt/status" \
        -o Dir::Cache="$root/.apt" -o Dir::Cache::archives="$root/.apt/archives" \
        -o APT::Sandbox::User= -o Debug::NoLocking=true -o Acquire::Retries=3 "$@"
}

# A source of the machine that has nothing for arm64 is no reason to stop; a missing package is.
foreign_apt update >"$root/.apt/update.log" 2>&1 || cat "$root/.apt/update.log" >&2
cd "$root/.apt/archives"
# shellcheck disable=SC2086 # a list of words
foreign_apt download $packages >"$root/.apt/download.log" 2>&1 || {
    cat "$root/.apt/download.log" >&2
    exit 1
}
for deb in "$root"/.apt/archives/*.deb; do
    dpkg-deb -x "$deb" "$root"
done
rm -rf "$root/.apt"
: >"$root/complete"
