#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_activation.sh DAEMON CTL NOTIFY_SINK: the daemon under a service manager: started by the first client through a
# socket that is passed in, READY, fed watchdog, RELOADING and READY again after SIGHUP, STOPPING and exit 0 after
# SIGTERM; the socket file, which is not the daemon's, is left alone.
set -u

daemon=$1 ctl=$2 sink=$3
if ! command -v systemd-socket-activate >/dev/null 2>&1; then
    echo "systemd-socket-activate is not installed"
    exit 77
fi
work=$(mktemp -d)
daemon_pid='' sink_pid=''
cleanup() {
    for pid in $daemon_pid $sink_pid; do
        kill "$pid" 2>/dev/null
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

fail() {
    echo "$1"
    echo "notifications:"
    cat "$work/notifications"
    echo "log of the daemon:"
    cat "$work/log"
    exit 1
}

# Polls for a condition for at most a minute.
wait_for() { # what, command ...
    what=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || fail "$what: not within a minute"
        sleep 0.05
    done
}

notified() { # text, times
    [ "$(grep -c -x "$1" "$work/notifications")" -ge "$2" ]
}

: >"$work/notifications"
"$sink" "$work/notify" >"$work/notifications" &
sink_pid=$!
wait_for "the notify socket" test -S "$work/notify"

# systemd-socket-activate becomes the daemon when the first client connects, so $! is the daemon's pid too.
NOTIFY_SOCKET=$work/notify WATCHDOG_USEC=400000 systemd-socket-activate --seqpacket -l "$work/mlacatd.sock" \
    -E NOTIFY_SOCKET -E WATCHDOG_USEC "$daemon" --device host >"$work/log" 2>&1 &
daemon_pid=$!
wait_for "the listening socket" test -S "$work/mlacatd.sock"
[ -s "$work/notifications" ] && fail "the daemon runs before a client came"

"$ctl" ping --timeout 60000 --socket "$work/mlacatd.sock" || fail "the first client was not served"
wait_for "READY=1" notified READY=1 1
wait_for "the watchdog's second meal" notified WATCHDOG=1 2

kill -HUP "$daemon_pid"
wait_for "RELOADING=1" notified RELOADING=1 1
wait_for "READY=1 after the reload" notified READY=1 2
"$ctl" ping --timeout 60000 --socket "$work/mlacatd.sock" || fail "not served after the reload"

kill -TERM "$daemon_pid"
wait "$daemon_pid"
rc=$?
daemon_pid=''
[ $rc -eq 0 ] || fail "exit status $rc after SIGTERM"
wait_for "STOPPING=1" notified STOPPING=1 1
[ -S "$work/mlacatd.sock" ] || fail "the daemon removed a socket that it did not make"
echo "activated by a client; READY, WATCHDOG, RELOADING, STOPPING seen"
