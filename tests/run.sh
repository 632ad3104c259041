#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# run.sh         builds and tests: gcc debug build, address + undefined-behaviour sanitizers, lint, demo. Under 10
#                minutes on 2 cores.
# run.sh --all   and: clang, thread sanitizer, fuzzing, long tests, soak, benchmarks, installation, aarch64 cross-build,
#                the GPU where there is one.
#
# Installs what is missing (deploy/install-deps.sh). Every failing test shows its output; the last line is "N passed,
# N failed, N skipped" over everything that ran, a cmocka program counting as its cases. Builds stay in build/.
set -u

all=false
case ${1:-} in
"") ;;
--all) all=true ;;
*)
    echo "usage: run.sh [--all]" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
jobs=$(nproc 2>/dev/null || echo 2)
passed=0 failed=0 skipped=0
: >"$work/skips"
: >"$work/summary"

say() {
    echo
    echo "== $*"
}

begin() { # title
    say "$1"
    title=$1
    began=$(date +%s)
}

# Adds to the totals and writes one line of the summary.
finish() { # passed failed skipped
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    printf '  %-44s %5d passed %4d failed %4d skipped %5d s\n' "$title" "$1" "$2" "$3" $(($(date +%s) - began)) \
        >>"$work/summary"
}

# A program that is a test by itself: 0 passed, 77 skipped (its last line is the reason), anything else failed. A
# program that ends with its own "N passed, N failed, N skipped" is counted by that line.
run_script() { # title, name, command ...
    begin "$1"
    name=$2
    shift 2
    { "$@" 2>&1 && echo 0 >"$work/rc" || echo $? >"$work/rc"; } | tee "$work/out"
    rc=$(cat "$work/rc")
    counts=$(tail -n 1 "$work/out" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    if [ "$rc" -eq 77 ]; then
        echo "$name $(tail -n 1 "$work/out")" >>"$work/skips"
        counts="0 0 1"
    elif [ -n "$counts" ]; then
        sed -n "s/^skip  \(.*\)/$name:\1/p" "$work/out" >>"$work/skips"
    elif [ "$rc" -eq 0 ]; then
        counts="1 0 0"
    else
        counts="0 1 0"
    fi
    # shellcheck disable=SC2086 # three numbers
    set -- $counts
    if [ "$rc" -ne 0 ] && [ "$rc" -ne 77 ] && [ "$2" -eq 0 ]; then
        set -- "$1" 1 "$3"
    fi
    finish "$@"
}

# Configures, builds and runs the tests of a preset.
run_preset() { # title, preset, more arguments of ctest ...
    begin "$1"
    preset=$2
    shift 2
    if ! { cmake --preset "$preset" && cmake --build --preset "$preset" -j "$jobs"; } >"$work/build" 2>&1; then
        tail -n 60 "$work/build"
        echo "the build of preset $preset failed"
        finish 0 1 0
        return
    fi
    # The thread sanitizer of gcc 12 needs fixed addresses where the kernel randomises much of them.
    fixed=
    if [ "$preset" = tsan ] && setarch -R true 2>/dev/null; then
        fixed="setarch -R"
    fi
    $fixed ctest --preset "$preset" -j "$jobs" "$@" 2>&1 | tee "$work/out"
    awk -f tests/tally.awk "build/$preset/Testing/Temporary/LastTest.log" "$work/out" >"$work/tally"
    sed -n 's/^skip //p' "$work/tally" >>"$work/skips"
    # shellcheck disable=SC2046 # three numbers
    finish $(sed -n 's/^count //p' "$work/tally")
}

# Skips that nobody has agreed to. In CI each is a failure.
check_skips() {
    sort -u "$work/skips" | while read -r name reason; do
        listed=false
        while read -r pattern _; do
            # shellcheck disable=SC2254 # a pattern
            case $pattern in
            "#"* | "") ;;
            *)
                case $name in
                $pattern) listed=true ;;
                esac
                ;;
            esac
        done <tests/known-skips.txt
        $listed || echo "  $name: $reason"
    done >"$work/unlisted"
    if [ -s "$work/unlisted" ] && [ -n "${CI:-}" ]; then
        begin "skips that tests/known-skips.txt does not list"
        cat "$work/unlisted"
        finish 0 "$(wc -l <"$work/unlisted")" 0
    fi
}

level="test"
$all && level="all"
say "what is needed"
if ! sh deploy/install-deps.sh $level; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi

run_script "lint" lint sh tests/lint.sh
if $all; then
    run_preset "gcc, debug (with the long tests)" dev
    run_preset "gcc, address + undefined sanitizers" asan
    run_preset "gcc, thread sanitizer" tsan -LE long
    run_preset "clang, optimised" clang -LE long
else
    run_preset "gcc, debug" dev -LE long
    run_preset "gcc, address + undefined sanitizers" asan -LE long
fi
run_script "demo" demo sh deploy/demo.sh
if $all; then
    run_script "soak" soak sh tests/with_daemon.sh build/release mlacatctl soak
    run_script "benchmarks, short" bench sh tests/with_daemon.sh build/release mlacatctl bench --quick
    run_script "fuzzing" fuzz sh tests/fuzz/run.sh --seconds 120 --build "$PWD/build/fuzz"
    run_script "installation" install sh tests/deploy/test_install.sh
    run_script "aarch64 cross-build" cross sh tests/cross/run.sh
    run_script "kernels on the GPU" gpu sh tests/gpu/run.sh
fi

check_skips
say "summary"
cat "$work/summary"
if [ -s "$work/skips" ]; then
    echo "skipped:"
    sort -u "$work/skips" | sed 's/^/  /'
fi
if ! $all; then
    echo "left out here:"
    echo "  clang, thread sanitizer, fuzzing, long tests, soak, benchmarks, installation, aarch64, GPU (run.sh --all)"
fi
echo
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
