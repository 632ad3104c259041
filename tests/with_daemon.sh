#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# with_daemon.sh BUILD COMMAND ...: runs a command (mlacatctl is on its path) beside a daemon of that build on a
# socket of its own, then stops the daemon. Fails if the command does, or if the daemon does not end with status 0.
set -u

if [ $# -lt 2 ]; then
    echo "usage: with_daemon.sh BUILD COMMAND ..." >&2
    exit 2
fi
build=$(cd "$1" && pwd) || exit 1
shift
daemon_pid=''
XDG_RUNTIME_DIR=$(mktemp -d)
PATH=$build/client/ctl:$PATH
export XDG_RUNTIME_DIR PATH
unset MLACAT_SOCKET
cleanup() {
    if [ -n "$daemon_pid" ]; then
        kill -KILL "$daemon_pid" 2>/dev/null
    fi
    rm -rf "$XDG_RUNTIME_DIR"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

"$build/server/mlacatd" >"$XDG_RUNTIME_DIR/log" 2>&1 &
daemon_pid=$!
tries=0
until mlacatctl ping >"$XDG_RUNTIME_DIR/ping" 2>&1; do
    tries=$((tries + 1))
    if [ $tries -ge 600 ] || ! kill -0 "$daemon_pid" 2>/dev/null; then
        cat "$XDG_RUNTIME_DIR/ping" "$XDG_RUNTIME_DIR/log"
        echo "with_daemon.sh: the daemon did not become ready"
        exit 1
    fi
    sleep 0.1
done

rc=0
"$@" || rc=$?
kill -TERM "$daemon_pid"
daemon_rc=0
wait "$daemon_pid" || daemon_rc=$?
daemon_pid=''
if [ $daemon_rc -ne 0 ]; then
    cat "$XDG_RUNTIME_DIR/log"
    echo "with_daemon.sh: the daemon ended with status $daemon_rc"
    exit 1
fi
exit $rc
