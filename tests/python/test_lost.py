# SPDX-License-Identifier: Apache-2.0
"""Calls with a fallback while the daemon is gone: they do not wait for it, and use it again when it is back."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import types

import numpy as np
import pytest

import mlacat
from mlacat import _functions
from test_lifecycle import call_until, is_right, plain_trio, run_child, seconds_of, trio

LONG = 3600.0
ANSWER_MS = mlacat._client.ANSWER_MS  # before the fixture `patience` raises it


class Faulty(_functions.Functions):
    """Without a daemon until `devices` has some."""

    fallback = "torch"

    def __init__(self):
        self.calls, self.probes, self.devices = 0, [], []

    def _run(self, *_):
        self.calls += 1
        if not self.devices:
            raise mlacat.ServiceLost("nobody listens", 14)

    def _probe(self, timeout_ms):
        self.probes.append(timeout_ms)
        return self.devices


def test_rests_get_longer_and_begin_again(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(_functions, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    client = Faulty()
    arrays = plain_trio()
    client.concat_mla_k(*arrays)
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        asked = len(client.probes)
        now[0] += seconds - 0.01
        client.concat_mla_k(*arrays)
        assert len(client.probes) == asked
        now[0] += 0.02
        client.concat_mla_k(*arrays)
        client.concat_mla_k(*arrays)
        assert client.probes[asked:] == [_functions.PROBE_MS]
    assert client.calls == 1
    # A daemon none of whose devices works is no help. One that comes back and goes at once has not earned short rests.
    now[0] += 31
    client.devices = [{"available": False}]
    client.concat_mla_k(*arrays)
    assert client.calls == 1
    now[0] += 31
    client.devices = [{"available": True}]
    client.concat_mla_k(*arrays)
    assert client.calls == 2 and not client._lost
    client.devices = []
    client.concat_mla_k(*arrays)
    assert client._rest_seconds == 30
    client._lost = False
    now[0] += 61
    client.concat_mla_k(*arrays)
    assert client._rest_seconds == 1


def test_calls_do_not_wait_for_a_lost_daemon(daemon, rest):
    rest(LONG)
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.5) as client:
        arrays = trio(client)
        client.concat_mla_k(*arrays)
        daemon.stop(signal.SIGKILL)
        assert seconds_of(client.concat_mla_k, *arrays) > 0.4  # it might have come back
        arrays[0].view(np.uint16)[...] = 0
        assert seconds_of(client.concat_mla_k, *arrays, times=100) < 10  # not 50
        assert is_right(arrays[0])
        assert seconds_of(client.concat_mla_absorb_q, arrays[1], arrays[1], times=100) < 10
        daemon.start()
        client.concat_mla_k(*arrays)
        assert client.server()["reconnects"] == 0


def test_service_is_used_again(daemon, rest):
    rest(0.01)
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.5) as client:
        arrays = trio(client)
        daemon.stop(signal.SIGKILL)
        client.concat_mla_k(*arrays)
        # Through many rests, each with a probe.
        assert seconds_of(lambda: (client.concat_mla_k(*arrays), time.sleep(0.01)), times=20) < 5  # not 10
        daemon.start()
        call_until(lambda: client.server()["reconnects"] == 1, client.concat_mla_k, *arrays)
        assert not client._lost
        arrays[0].view(np.uint16)[...] = 0
        client.concat_mla_k(*arrays)
        assert is_right(arrays[0])


def test_default_client_that_never_connected(daemon, as_default, rest):
    """A daemon that listens and does not answer costs the whole connect_timeout, but not each time."""
    rest(0.01)
    as_default(daemon, fallback="torch", connect_timeout=2.0)
    arrays = plain_trio()
    daemon.send(signal.SIGSTOP)
    try:
        assert seconds_of(mlacat.concat_mla_k, *arrays) > 1.9
        assert seconds_of(mlacat.concat_mla_k, *arrays, times=20) < 20  # not 40
        assert mlacat._client.default._client is None
    finally:
        daemon.send(signal.SIGCONT)
    call_until(lambda: mlacat._client.default._client is not None, mlacat.concat_mla_k, *arrays)


def test_is_available_asks_the_daemon(daemon, as_default, rest):
    rest(LONG)
    as_default(daemon, fallback="torch", reconnect_timeout=0.5)
    arrays = trio(mlacat.default_client())
    assert mlacat.is_available("host") and mlacat.supports("concat_mla_q", "fp32", "host")
    daemon.stop(signal.SIGKILL)
    assert seconds_of(mlacat.is_available) < 10  # not as long as it would wait for an answer
    assert not mlacat.is_available() and not mlacat.supports("concat_mla_k")
    assert mlacat.default_client().supports("concat_mla_k")
    mlacat.concat_mla_k(*arrays)
    daemon.start()
    assert mlacat._client.default._lost
    assert mlacat.is_available() and mlacat.supports("concat_mla_k")

    def ask_and_call():
        assert mlacat.is_available()
        mlacat.concat_mla_k(*arrays)  # who has seen the daemon need not rest from it

    call_until(lambda: mlacat.default_client().server()["reconnects"] == 1, ask_and_call)


def test_is_available_with_a_daemon_that_does_not_answer(daemon, as_default, monkeypatch):
    as_default(daemon, connect_timeout=30.0, reconnect_timeout=30.0)
    assert mlacat.is_available()
    assert ANSWER_MS == 500  # as is_available() says
    daemon.send(signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(mlacat._client, "ANSWER_MS", ANSWER_MS)
            assert 0.4 < seconds_of(mlacat.is_available) < 20
            assert not mlacat.is_available()
    finally:
        daemon.send(signal.SIGCONT)
    assert mlacat.is_available()
    mlacat.default_client().close()
    assert not mlacat.is_available()


def test_threads_share_the_first_wait(daemon, as_default, rest):
    rest(LONG)
    as_default(daemon, fallback="torch", connect_timeout=2.0)
    daemon.send(signal.SIGSTOP)
    try:
        threads = [threading.Thread(target=mlacat.concat_mla_k, args=plain_trio()) for _ in range(6)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begin < 10  # not 12
        assert mlacat._client.default._rest_seconds == LONG
    finally:
        daemon.send(signal.SIGCONT)


def test_threads_ask_once_for_all(rest):
    """Who asks does not keep others waiting."""
    rest(LONG)
    client = Faulty()
    arrays = plain_trio()
    client.concat_mla_k(*arrays)
    asks, may_end = threading.Event(), threading.Event()

    def probe(timeout_ms):
        asks.set()
        may_end.wait(20)
        client.devices = [{"available": True}]
        return client.devices

    client._probe = probe
    client._rest_until = 0.0
    thread = threading.Thread(target=client.concat_mla_k, args=arrays)
    thread.start()
    assert asks.wait(20)
    client.concat_mla_k(*arrays)
    assert client.calls == 1
    may_end.set()
    thread.join()
    assert client.calls == 2 and not client._lost


def test_forked_child_asks_itself(daemon, rest):
    rest(LONG)
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.05) as client:
        arrays = trio(client)
        daemon.stop(signal.SIGKILL)
        client.concat_mla_k(*arrays)
        assert client._lost
        daemon.start()

        def child():
            client.concat_mla_k(*plain_trio())
            return not client._lost and client.server()["pid"] == daemon.process.pid

        assert run_child(child) == 0
        assert client._lost


def test_without_a_fallback_each_call_tries(daemon):
    with mlacat.Client(daemon.socket, reconnect_timeout=0.05) as client:
        arrays = trio(client)
        client.concat_mla_k(*arrays)
        daemon.stop(signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(mlacat.ServiceLost):
                client.concat_mla_k(*arrays)
        daemon.start()

        def ask():
            with contextlib.suppress(mlacat.ServiceLost):  # a slow machine may not come back in so short a time
                client.empty(1)

        call_until(lambda: client.server()["reconnects"] == 1, ask)
        client.concat_mla_k(*arrays)
