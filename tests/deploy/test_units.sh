#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# test_units.sh UNITS DAEMON: the systemd units are free of mistakes that systemd-analyze can find, as installed, and as
# hardened as they claim to be.
set -u

units=$1 daemon=$2
if ! command -v systemd-analyze >/dev/null 2>&1; then
    echo "systemd-analyze is not installed"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The unit names the daemon where it will be installed; verify looks whether it is there.
gpu=GPU-8932f937-d72c-4106-c12f-20bd9faed9f6
for unit in mlacatd@host.service mlacatd@$gpu.service mlacatd@.service; do
    sed "s,=/usr/bin/mlacatd,=$daemon," "$units/mlacatd@.service" >"$work/$unit"
done
cp "$units/mlacatd@.socket" "$work/mlacatd@.socket"
cp "$units/mlacatd@.socket" "$work/mlacatd@host.socket"
cp "$units/mlacatd@.socket" "$work/mlacatd@$gpu.socket"
mkdir "$work/mlacatd@host.socket.d"
cp "$units/default-socket.conf" "$work/mlacatd@host.socket.d/"
if grep -q '^ExecStart=/usr/bin/' "$work/mlacatd@host.service"; then
    echo "ExecStart= does not name /usr/bin/mlacatd"
    exit 1
fi

# What the CUDA device cannot do without.
for line in CacheDirectory=mlacat 'DeviceAllow=char-nvidia\* rw' PrivateDevices=no ProcSubset=all; do
    if ! grep -q "^$line\$" "$units/mlacatd@.service"; then
        echo "mlacatd@.service has no $line"
        exit 1
    fi
done

if [ ! -d /run/systemd ] && [ "$(id -u)" -ne 0 ]; then
    echo "systemd-analyze verify needs root, or a machine that runs systemd: it makes /run/systemd"
    exit 77
fi
SYSTEMD_UNIT_PATH="$work:"
export SYSTEMD_UNIT_PATH
if ! systemd-analyze verify --man=no "$work/mlacatd@host.service" "$work/mlacatd@host.socket" \
    "$work/mlacatd@$gpu.service" "$work/mlacatd@$gpu.socket" >"$work/verify" 2>&1 ||
    grep -q mlacat "$work/verify"; then
    echo "systemd-analyze verify:"
    cat "$work/verify"
    exit 1
fi
echo "systemd-analyze verify: clean"

# sysusers.d: made in an empty root, so that the machine's own users stay as they are.
if [ "$(id -u)" -eq 0 ] && command -v systemd-sysusers >/dev/null 2>&1; then
    mkdir -p "$work/root/etc" "$work/root/usr/lib/sysusers.d"
    cp "$units/sysusers.conf" "$work/root/usr/lib/sysusers.d/mlacat.conf"
    if ! systemd-sysusers --root="$work/root" >"$work/sysusers" 2>&1 ||
        ! grep -q '^mlacat:' "$work/root/etc/passwd" || ! grep -q '^mlacat:' "$work/root/etc/group"
    then
        echo "systemd-sysusers does not make user and group mlacat:"
        cat "$work/sysusers"
        exit 1
    fi
    echo "systemd-sysusers: user and group mlacat made"
fi

# 0 is closed, 100 is open; the remaining exposure is a few points for the socket family and the user.
if ! systemd-analyze security --offline=true --threshold=10 --no-pager "$work/mlacatd@host.service" \
    >"$work/security" 2>&1
then
    cat "$work/security"
    exit 1
fi
grep '✗' "$work/security" || true
tail -n 1 "$work/security"
