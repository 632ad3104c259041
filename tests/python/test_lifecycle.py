# SPDX-License-Identifier: Apache-2.0
"""Connections: restart, fork, threads, close, and what happens without a daemon."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

import mlacat


def trio(client, tokens=3):
    k, k_nope, k_rope = client.empty((tokens, 4, 192)), client.empty((tokens, 4, 128)), client.empty((tokens, 1, 64))
    k_nope.view(np.uint16)[...] = 5
    k_rope.view(np.uint16)[...] = 6
    return k, k_nope, k_rope


def plain_trio():
    """The same in memory that is not shared, k filled too."""
    k, k_nope, k_rope = [np.full(shape, 5, np.uint16) for shape in ((3, 4, 192), (3, 4, 128), (3, 1, 64))]
    k_rope[...] = 6
    return k, k_nope, k_rope


def is_right(k):
    bits = k.view(np.uint16)
    return bool((bits[..., :128] == 5).all() and (bits[..., 128:] == 6).all())


def seconds_of(function, *arguments, times=1):
    begin = time.monotonic()
    for _ in range(times):
        function(*arguments)
    return time.monotonic() - begin


def call_until(is_true, function, *arguments):
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        function(*arguments)


def run_child(body):
    """Runs body in a forked child; its result is the child's status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if body() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_arrays_outlive_close_and_the_client(shared_daemon):
    client = mlacat.Client(shared_daemon.socket)
    k, k_nope, k_rope = trio(client)
    with client:
        client.concat_mla_k(k, k_nope, k_rope)
    assert client.closed
    with pytest.raises(mlacat.PreconditionError, match="closed"):
        client.concat_mla_k(k, k_nope, k_rope)
    del client
    gc.collect()
    assert is_right(k)


def test_memory_ends_with_its_arrays(client):
    before = client._held()["segments"]
    arrays = trio(client)
    part = arrays[0][1:]
    assert client._held()["segments"] == before + 3
    del arrays
    assert client._held()["segments"] == before + 1
    del part
    assert client._held()["segments"] == before


def test_client_from_many_threads(client):
    failures = []

    def work():
        try:
            arrays = trio(client)
            for _ in range(300):
                arrays[0].view(np.uint16)[...] = 0
                client.concat_mla_k(*arrays)
                if not is_right(arrays[0]):
                    failures.append("wrong bytes")
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert client._held()["streams"] <= 4


def test_close_while_others_call(shared_daemon):
    client = mlacat.Client(shared_daemon.socket)
    arrays = trio(client)
    called = threading.Event()
    ended = []

    def work():
        try:
            while True:
                client.concat_mla_k(*arrays)
                called.set()
        except mlacat.PreconditionError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    called.wait()
    client.close()
    for thread in threads:
        thread.join()
    assert len(ended) == 3
    assert is_right(arrays[0])


def test_close_while_arrays_end(shared_daemon):
    for _ in range(50):
        client = mlacat.Client(shared_daemon.socket)
        arrays = [client.empty((8,)) for _ in range(4)]
        thread = threading.Thread(target=arrays.clear)
        thread.start()
        client.close()
        thread.join()
        assert client.closed and client._held()["segments"] == 0


def test_close_while_the_last_array_ends(daemon):
    """Both wait for the daemon: the connection must not end under the array's release."""
    for _ in range(20):
        client = mlacat.Client(daemon.socket)
        arrays = list(trio(client))
        client.concat_mla_k(*arrays)  # a stream: close() waits for its end, and lets others run meanwhile
        del arrays[1:]
        daemon.send(signal.SIGSTOP)
        threads = [threading.Thread(target=work, daemon=True) for work in (client.close, arrays.clear)]
        for thread in threads:
            thread.start()
            time.sleep(0.01)  # until it waits; whether it does decides what is tested, not what is right
        daemon.send(signal.SIGCONT)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert client.closed and client._held() == {"segments": 0, "streams": 0}


def test_forked_child_connects_anew(client):
    mine = trio(client)
    client.concat_mla_k(*mine)

    def child():
        try:
            client.concat_mla_k(*mine)  # memory of the parent's connection
            return False
        except mlacat.PreconditionError:
            pass
        theirs = trio(client)
        client.concat_mla_k(*theirs)
        client.close()
        return is_right(theirs[0])

    assert run_child(child) == 0
    mine[0].view(np.uint16)[...] = 0
    client.concat_mla_k(*mine)
    assert is_right(mine[0])


def test_forked_child_connects_once_for_all_threads(client):
    def child():
        barrier = threading.Barrier(4)
        arrays = []

        def work():
            barrier.wait()
            arrays.append(trio(client))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in arrays:
            client.concat_mla_k(*one)
        return len(arrays) == 4 and all(is_right(one[0]) for one in arrays)

    assert run_child(child) == 0


def test_forked_child_of_the_default_client(shared_daemon, as_default):
    as_default(shared_daemon)
    assert mlacat.is_available()

    def child():
        arrays = trio(mlacat.default_client())
        mlacat.concat_mla_k(*arrays)
        return is_right(arrays[0])

    assert run_child(child) == 0


def test_daemon_restarts(daemon):
    with mlacat.Client(daemon.socket) as client:
        arrays = trio(client)
        client.concat_mla_k(*arrays)
        daemon.restart()
        arrays[0].view(np.uint16)[...] = 0
        deadline = time.monotonic() + 60
        while not is_right(arrays[0]):
            try:
                client.concat_mla_k(*arrays)
            except mlacat.ServiceLost:
                assert time.monotonic() < deadline
        assert client.server()["reconnects"] == 1


def test_daemon_lost_is_an_error_of_its_own(daemon):
    with mlacat.Client(daemon.socket, reconnect_timeout=0.05) as client:
        arrays = trio(client)
        client.concat_mla_k(*arrays)
        daemon.stop(signal.SIGKILL)
        with pytest.raises(mlacat.ServiceLost) as caught:
            client.concat_mla_k(*arrays)
        assert caught.value.code == 14
        daemon.start()


def test_fallback_without_a_daemon(daemon):
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.05) as client:
        arrays = trio(client)
        client.concat_mla_k(*arrays)
        daemon.stop(signal.SIGKILL)
        for _ in range(2):
            arrays[0].view(np.uint16)[...] = 0
            client.concat_mla_k(arrays[0], arrays[1], arrays[2][:, 0])
            assert is_right(arrays[0])
        with pytest.raises(mlacat.ArgumentError):
            client.concat_mla_k(arrays[0], arrays[1], arrays[1])
        assert client._lost
        daemon.start()


def test_fallback_with_a_stream(daemon):
    """What cannot be told of a CUDA stream is not copied on another one."""

    class Array(np.ndarray):
        __array_struct__ = property()

    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.05) as client:
        arrays = trio(client)
        daemon.stop(signal.SIGKILL)
        client.concat_mla_k(*arrays, stream=5)  # memory of the host, which knows no streams
        assert is_right(arrays[0])
        assert not mlacat._functions.can_copy(arrays[0].view(Array), 5)
        assert mlacat._functions.can_copy(arrays[0].view(Array), None)
        daemon.start()


def test_fallback_for_memory_of_others(client, shared_daemon):
    with mlacat.Client(shared_daemon.socket, fallback="torch") as lenient:
        k, k_nope, k_rope = (np.array(array.view(np.uint16)) for array in trio(client))
        lenient.concat_mla_k(k, k_nope, k_rope)
        assert is_right(k)
        assert lenient.concat_mla_absorb_q(k_nope, k_nope).shape == (3, 4, 256)


def test_fallback_makes_the_output_too(daemon):
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.05) as client:
        a = client.empty((3, 4, 128), "fp16")
        a[...] = 5
        daemon.stop(signal.SIGKILL)
        q = client.concat_mla_absorb_q(a, a)
        assert q.shape == (3, 4, 256) and q.dtype == a.dtype and (q == 5).all()
        client.fallback = "error"
        with pytest.raises(mlacat.ServiceLost):
            client.concat_mla_absorb_q(a, a)
        daemon.start()


def test_fallback_copies_bits(client, shared_daemon):
    """As the service does: uint16 counts as the bits of bf16, in whichever of the two types an array comes."""
    with mlacat.Client(shared_daemon.socket, fallback="torch") as lenient:
        bf16 = mlacat._dtypes.numpy_type("bf16")
        first = np.full((3, 128), 0x3FC0, np.uint16).view(bf16)  # 1.5
        out, second = np.zeros((3, 192), np.uint16), np.full((3, 64), 0x4040, np.uint16)
        lenient.concat_mla_q(first, second, out)
        assert (out[:, :128] == 0x3FC0).all() and (out[:, 128:] == 0x4040).all()


def test_default_client(shared_daemon, as_default, monkeypatch):
    as_default(shared_daemon)
    assert mlacat.is_available() and mlacat.is_available("host") and not mlacat.is_available("cuda")
    assert mlacat.supports("concat_mla_k", "fp8_e4m3")
    arrays = trio(mlacat.default_client())
    mlacat.concat_mla_k(*arrays)
    assert is_right(arrays[0])
    q = mlacat.concat_mla_absorb_q(arrays[1], arrays[1])
    mlacat.concat_mla_q(arrays[1], arrays[1], q)
    assert (q.view(np.uint16) == 5).all()


def test_default_client_without_a_daemon(as_default, monkeypatch):
    as_default("/nowhere/socket")
    assert not mlacat.is_available() and not mlacat.supports("concat_mla_k")
    arrays = plain_trio()
    with pytest.raises(mlacat.ServiceLost):
        mlacat.concat_mla_k(*arrays)
    mlacat.concat_mla_k(*(array[:0] for array in arrays))  # nothing to do
    with pytest.raises(mlacat.ArgumentError):
        mlacat.concat_mla_k(arrays[0][:0], arrays[1][:0], arrays[1][:0])
    mlacat.configure(socket="/nowhere/socket", fallback="torch")
    mlacat.concat_mla_k(*arrays)
    assert is_right(arrays[0])


def test_environment(shared_daemon, as_default, monkeypatch):
    monkeypatch.setenv("MLACAT_SOCKET", shared_daemon.socket)
    mlacat.configure()
    assert mlacat.is_available()
    monkeypatch.setenv("MLACAT_DISABLE", "1")
    monkeypatch.setenv("MLACAT_FALLBACK", "torch")
    mlacat.configure()
    assert not mlacat.is_available()
    k = np.zeros((3, 4, 192), np.uint16)
    mlacat.concat_mla_k(k, np.full((3, 4, 128), 5, np.uint16), np.full((3, 64), 6, np.uint16))
    assert is_right(k)


def test_clients_in_a_row_leave_nothing(shared_daemon):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = None
    for turn in range(20):
        with mlacat.Client(shared_daemon.socket) as client:
            arrays = trio(client)
            client.concat_mla_k(*arrays)
            del arrays
        if turn == 2:
            before = descriptors()
    assert descriptors() <= before
