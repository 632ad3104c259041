#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_example.sh MLACATD MLACATCTL EXAMPLE: the README's C example runs beside a daemon that serves host memory, and
# says what it should.
set -u

daemon=$1 ctl=$2 example=$3
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
MLACAT_SOCKET=$work/socket
export MLACAT_SOCKET

fail() { # what
    echo "test_example.sh: $1"
    cat "$work/log"
    exit 1
}

"$daemon" --socket "$MLACAT_SOCKET" --device host >"$work/log" 2>&1 &
daemon_pid=$!
tries=0
until "$ctl" ping >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -ge 600 ] || ! kill -0 "$daemon_pid" 2>/dev/null; then
        fail "the daemon did not become ready"
    fi
    sleep 0.1
done
"$example" >"$work/said" 2>&1 || fail "the example ended with status $?: $(cat "$work/said")"
[ "$(cat "$work/said")" = "k[0,0,0] = 0x3f80, k[0,0,128] = 0x4000" ] || fail "the example said $(cat "$work/said")"
kill -TERM "$daemon_pid"
wait "$daemon_pid" || fail "the daemon ended with status $?"
daemon_pid=''
"$example" >"$work/said" 2>&1 && fail "the example ended with status 0 without a daemon"
grep -q "$MLACAT_SOCKET" "$work/said" || fail "without a daemon the example said $(cat "$work/said")"
echo "the README's example: right with a daemon, a clear refusal without"
