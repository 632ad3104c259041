#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh: builds the service and shows its main job. Starts a daemon on a socket of its own, on the GPU where there is
# one and else on the CPU, runs both ops through the client library at the shapes of real models, checks every byte of
# every result, stops the daemon. Leaves nothing behind but the build in build/release. Works as root,
# as a user with sudo, and without either when all packages are there.
set -eu

cd "$(dirname "$0")/.."
daemon_pid=''
run_dir=''

cleanup() {
    if [ -n "$daemon_pid" ]; then
        kill -KILL "$daemon_pid" 2>/dev/null || true
        wait "$daemon_pid" 2>/dev/null || true
        daemon_pid=''
    fi
    if [ -n "$run_dir" ]; then
        rm -rf "$run_dir"
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    echo "demo.sh: $1" >&2
    if [ -s "$run_dir/log" ]; then
        echo "log of the daemon:" >&2
        cat "$run_dir/log" >&2
    fi
    exit 1
}

sh deploy/install-deps.sh build

run_dir=$(mktemp -d "${TMPDIR:-/tmp}/mlacat-demo.XXXXXX")
echo "building (build/release)"
if ! { cmake --preset release && cmake --build --preset release; } >"$run_dir/build" 2>&1; then
    tail -n 60 "$run_dir/build" >&2
    fail "the build failed"
fi
daemon=build/release/server/mlacatd
ctl=build/release/client/ctl/mlacatctl

# A run-time directory of our own: neither the daemon nor the client sees another one's socket.
XDG_RUNTIME_DIR=$run_dir
export XDG_RUNTIME_DIR
unset MLACAT_SOCKET
"$daemon" --device auto >"$run_dir/log" 2>&1 &
daemon_pid=$!
tries=0
until "$ctl" ping >"$run_dir/ping" 2>&1; do
    kill -0 "$daemon_pid" 2>/dev/null || fail "the daemon did not start"
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail "the daemon is not ready after 60 s: $(cat "$run_dir/ping")"
    sleep 0.1
done

echo "device: $(sed -n 's/.* event=device uuid=\([^ ]*\) .* name="\([^"]*\)".*/\1, \2/p' "$run_dir/log")"
sed -n 's/.* event=device_absent kind=cuda reason=\(.*\)/no GPU: \1/p' "$run_dir/log"
echo
"$ctl" info || fail "mlacatctl info failed"
echo
"$ctl" run models || fail "a call failed or a result was wrong"
echo

kill -TERM "$daemon_pid"
rc=0
wait "$daemon_pid" || rc=$?
daemon_pid=''
[ $rc -eq 0 ] || fail "the daemon ended with exit status $rc after SIGTERM, not 0"
if [ -e "$run_dir/mlacat/mlacatd.sock" ]; then
    fail "the daemon left its socket behind"
fi
echo "the daemon drained and ended with exit status 0"
