#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# lint.sh: the rules of CONTRIBUTING.md that a program can check. Prints one line for each rule and every offence; the
# exit status is 0 when there is none. The last line is "N passed, N failed, N skipped".
set -u

cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

if command -v git >/dev/null 2>&1 && git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files --cached --others --exclude-standard
else
    find . -path './build*' -prune -o -path ./.git -prune -o -type f -print | sed 's,^\./,,'
fi | while read -r file; do
    [ -f "$file" ] && echo "$file"
done | sort -u >"$work/files"

select_files() { # pattern
    grep -E "$1" "$work/files" >"$work/selected"
}

# A rule's offences are on stdin, one a line.
rule() { # name
    if [ -s "$work/offences" ]; then
        failed=$((failed + 1))
        echo "FAIL  $1"
        sed 's/^/      /' "$work/offences"
    else
        passed=$((passed + 1))
        echo "ok    $1"
    fi
}

skip() { # name, reason
    skipped=$((skipped + 1))
    echo "skip  $1: $2"
}

select_files '\.[ch]$'
xargs awk -f tests/lint_split.awk <"$work/selected" >"$work/split"
grep '^code' "$work/split" >"$work/code"
grep '^comment' "$work/split" >"$work/comments"
cp "$work/selected" "$work/c_files"

formatter=
for candidate in clang-format-14 clang-format; do
    if [ -z "$formatter" ] && "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
        formatter=$candidate
    fi
done
if [ -n "$formatter" ]; then
    xargs "$formatter" --dry-run -Werror <"$work/c_files" 2>&1 | grep -E '^[^ ]*:[0-9]+:' >"$work/offences"
    rule "C sources are formatted (clang-format 14)"
else
    skip "C sources are formatted" "clang-format 14 is not installed, and other versions format differently"
fi

if command -v shellcheck >/dev/null 2>&1; then
    select_files '(\.sh|^\.ci/run)$'
    xargs shellcheck -f gcc <"$work/selected" >"$work/offences" 2>&1
    rule "shell scripts pass shellcheck"
else
    skip "shell scripts pass shellcheck" "shellcheck is not installed"
fi

select_files '\.([ch]|sh|awk|py|cmake)$|CMakeLists\.txt$'
# shellcheck disable=SC2016 # awk's own
xargs awk 'length($0) > 120 { print FILENAME ":" FNR ": " length($0) " columns" }' <"$work/selected" >"$work/offences"
rule "lines have at most 120 columns"

select_files '\.([ch]|sh|awk|py|md|cmake|def|proto|txt|service|socket|yaml|conf|json)$'
xargs awk '/[ \t]$/ { print FILENAME ":" FNR ": ends in white space" }' <"$work/selected" >"$work/offences"
rule "no line ends in white space"

select_files '\.([ch]|sh|awk|py|service|socket|conf|yaml)$'
while read -r file; do
    head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || echo "$file: no SPDX line in the first three"
done <"$work/selected" >"$work/offences"
rule "every source names its licence"

while read -r file; do
    lines=$(wc -l <"$file")
    [ "$lines" -le 600 ] || echo "$file: $lines lines, 600 are allowed"
done <"$work/c_files" >"$work/offences"
rule "no file is longer than 600 lines"

xargs awk -v functions=1 -f tests/lint_split.awk <"$work/c_files" |
    awk -F '\t' '$3 > 60 { print $1 ":" $2 ": a function of " $3 " lines, 60 are allowed" }' >"$work/offences"
rule "no function is longer than 60 lines"

# Calls without a bound, without an error, or with hidden shared state.
forbidden='strcpy|stpcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atoll|atof|strtok|alloca|tmpnam|mktemp|tempnam'
forbidden="$forbidden|localtime|gmtime|ctime|asctime|rand|srand|popen|sscanf|scanf|vfork|longjmp"
awk -F '\t' -v forbidden="(^|[^A-Za-z0-9_>.])($forbidden)[ ]*[(]" \
    '$4 ~ forbidden { print $2 ":" $3 ":" $4 }' "$work/code" >"$work/offences"
rule "no forbidden libc call"

awk -F '\t' '$4 ~ /TODO|FIXME|XXX|HACK/ { print $2 ":" $3 ":" $4 }' "$work/comments" >"$work/offences"
rule "no TODO left behind"

# Codes: every name that a header's "Errors:" paragraph gives in capitals, and every MLACAT_ name in a comment, is
# real.
{
    cut -f 4 "$work/code" | grep -oE '\b[A-Z][A-Z0-9_]{2,}\b'
    sed -n 's/^MLACAT_STATUS(\([A-Z_]*\),.*/\1 MLACAT_\1/p; s/^MLACAT_SCOPE(\([A-Z_]*\),.*/\1 MLACAT_SCOPE_\1/p' \
        proto/mlacat_status.def | tr ' ' '\n'
    sed -n 's/^MLACAT_\(OP\|DTYPE\)([0-9]*, *\([A-Z0-9_]*\),.*/MLACAT_\1_\2/p' proto/*.def
    # An environment variable that some code reads is a name too, though none defines it.
    xargs grep -ohE '\b(getenv|env_number)\("[A-Z0-9_]+"' <"$work/c_files" | cut -d '"' -f 2
    # shellcheck disable=SC2016 # a pattern
    grep -ohE '\$\{?MLACAT_[A-Z0-9_]+' tests/*.sh tests/*/*.sh deploy/*.sh | tr -d '${'
} | sort -u >"$work/known_names"
awk -F '\t' -v names="$work/known_names" '
    BEGIN { while ((getline name < names) > 0) known[name] = 1 }
    $2 != file { file = $2; errors = 0 }
    {
        text = $4
        if (text ~ /Errors:/) { errors = 1; last = $3 - 1 }
        if (errors && $3 != last + 1) errors = 0
        last = $3
        while (match(text, /[A-Z][A-Z0-9_]*[A-Z0-9*]/)) {
            name = substr(text, RSTART, RLENGTH)
            text = substr(text, RSTART + RLENGTH)
            if (name ~ /\*$/ || name in known || name !~ /_/) continue
            if (name ~ /^MLACAT_[A-Z]/ || errors && name !~ /^(SO|MSG|SCM|SOCK|F|MFD|AF)_/)
                print $2 ":" $3 ": " name " is no code or name of this project"
        }
    }' "$work/comments" >"$work/offences"
rule "comments name only codes that exist"

cut -f 4 "$work/code" | grep -oE '[A-Za-z_][A-Za-z0-9_]*' | sort -u >"$work/identifiers"
awk -F '\t' -v names="$work/identifiers" '
    BEGIN { while ((getline name < names) > 0) known[name] = 1 }
    {
        text = $4
        while (match(text, /[a-z_][a-z0-9_]*_[a-z0-9_]*\(\)/)) {
            name = substr(text, RSTART, RLENGTH - 2)
            text = substr(text, RSTART + RLENGTH)
            if (!(name in known)) print $2 ":" $3 ": " name "() is not in the code"
        }
    }' "$work/comments" >"$work/offences"
rule "comments name only functions that exist"

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
