#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_readme.sh ROOT: the README's C example is client/examples/concat_mla_k.c, which the build compiles and the
# tests run, and every file that the README or CONTRIBUTING links to exists.
set -u

root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

# The first ```c block; the file's licence line is not shown to the reader.
awk '/^```c$/ { inside = 1; next } /^```$/ { if (inside) exit } inside' "$root/README.md" >"$work/shown"
grep -v '^/\* SPDX' "$root/client/examples/concat_mla_k.c" >"$work/built"
if ! diff "$work/shown" "$work/built" >"$work/diff"; then
    echo "README.md (<) and client/examples/concat_mla_k.c (>) differ:"
    cat "$work/diff"
    status=1
fi

for page in README.md CONTRIBUTING.md; do
    grep -oE '\]\([^)#]+' "$root/$page" | sed 's/^](//' | grep -v '^http' | while read -r target; do
        [ -e "$root/$target" ] || echo "$page links to $target, which is not there"
    done >"$work/links"
    if [ -s "$work/links" ]; then
        cat "$work/links"
        status=1
    fi
done

[ $status -eq 0 ] && echo "README.md: the example is the one that is built, and every link has its file"
exit $status
