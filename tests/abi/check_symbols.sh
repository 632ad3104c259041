#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_symbols.sh LIBRARY MAP HEADER NM READELF: the library exports exactly what its version script lists, that is
# exactly what its header declares, under the soname that clients have recorded.
set -u

library=$1 map=$2 header=$3 nm=$4 readelf=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

# name;  lines between global: and local: of the version script, comments removed
sed -e 's,/\*.*\*/,,' -e 's/#.*//' "$map" | awk '
    /global:/ { inside = 1; sub(/.*global:/, "") }
    /local:|}/ { inside = 0 }
    inside { gsub(/[;,]/, " "); for (i = 1; i <= NF; i++) print $i }' | sort >"$work/map"

"$nm" -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort >"$work/exported"

# Functions marked MLACAT_API: the last word before the first bracket after the mark.
awk '
    /^#/ { next }
    /^MLACAT_API/ { text = ""; open = 1 }
    open { text = text " " $0 }
    open && /\(/ { sub(/\(.*/, "", text); n = split(text, word, /[ *]+/); print word[n]; open = 0 }' "$header" |
    sort >"$work/declared"

compare() { # left, its name, right, its name
    if ! diff "$work/$1" "$work/$3" >"$work/diff"; then
        echo "$2 (<) and $4 (>) differ:"
        grep '^[<>]' "$work/diff"
        status=1
    fi
}

if [ ! -s "$work/map" ] || [ ! -s "$work/declared" ]; then
    echo "no symbols found in $map or no MLACAT_API function in $header"
    exit 1
fi
compare exported "the library's dynamic symbols" map "the version script"
compare declared "the functions of mlacat.h" map "the version script"

if grep -qv '^mlacat_' "$work/exported"; then
    echo "exported without the prefix mlacat_: $(grep -v '^mlacat_' "$work/exported" | tr '\n' ' ')"
    status=1
fi

# A symbol without a version could never be changed later.
unversioned=$("$nm" -D --defined-only "$library" | awk '$2 != "A" && $3 !~ /@@/ { print $3 }' | tr '\n' ' ')
if [ -n "$unversioned" ]; then
    echo "exported without a version: $unversioned"
    status=1
fi

soname=$("$readelf" -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\].*/\1/p')
if [ "$soname" != libmlacat.so.0 ]; then
    echo "the soname is \"$soname\", clients expect libmlacat.so.0"
    status=1
fi

echo "$(wc -l <"$work/exported") symbols exported"
exit $status
