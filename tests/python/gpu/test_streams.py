# SPDX-License-Identifier: Apache-2.0
"""Order: the call waits for what its CUDA stream was given before, and what comes after waits for the call."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

import mlacat

N, H, P, R = 2048, 16, 128, 64


def inputs(value):
    """k_nope and k_rope that a stream is still busy to make when this returns."""
    k_nope = torch.zeros(N, H, P, dtype=torch.bfloat16, device="cuda")
    k_rope = torch.zeros(N, 1, R, dtype=torch.bfloat16, device="cuda")
    torch.cuda._sleep(2_000_000)
    return k_nope.fill_(value), k_rope.fill_(value + 1)


def check(k, value):
    for name, part, wanted in (("nope", k[..., :P], value), ("rope", k[..., P:], value + 1)):
        seen = part.unique().tolist()
        assert seen == [wanted], f"the {name} part holds {seen[:8]} in place of {wanted} (-1: it was not written)"


def new_k():
    return torch.full((N, H, P + R), -1, dtype=torch.bfloat16, device="cuda")


def test_work_before_and_after():
    for value in range(20):
        k = new_k()
        mlacat.concat_mla_k(k, *inputs(value))
        check(k.clone(), value)


def test_the_python_thread_does_not_wait():
    """With 20 ms of work before it on the stream the call returns at once."""
    k = new_k()
    k_nope, k_rope = inputs(3)
    mlacat.concat_mla_k(k, k_nope, k_rope)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(40_000_000)
    mlacat.concat_mla_k(k, k_nope, k_rope)
    done.record()
    assert not done.query()
    done.synchronize()
    check(k, 3)


def test_several_streams():
    streams = [torch.cuda.Stream() for _ in range(6)]
    for turn in range(10):
        results = []
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                k = new_k()
                mlacat.concat_mla_k(k, *inputs(10 * turn + index))
                results.append(k.clone())
        for index, (stream, result) in enumerate(zip(streams, results)):
            stream.synchronize()
            check(result, 10 * turn + index)


def test_more_streams_than_are_kept():
    """torch has 32 streams of each priority; with the default stream that is more than the package keeps open."""
    streams = [torch.cuda.Stream(priority=-(index % 2)) for index in range(64)]
    for stream in streams:
        with torch.cuda.stream(stream):
            k = new_k()
            mlacat.concat_mla_k(k, *inputs(5))
            result = k.clone()
        stream.synchronize()
        check(result, 5)
    assert mlacat.default_client()._held()["streams"] <= 32


def test_a_stream_that_is_given():
    stream = torch.cuda.Stream()
    k = new_k()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        k_nope, k_rope = inputs(7)
    mlacat.concat_mla_k(k, k_nope, k_rope, stream=stream.cuda_stream)
    stream.synchronize()
    check(k, 7)


def test_tensors_freed_right_after_the_call():
    """Their memory is given to the next ones at once, which the stream's order makes right."""
    results = []
    for value in range(60):
        k = new_k()
        mlacat.concat_mla_k(k, *inputs(value % 50))
        results.append((k[::97].clone(), value % 50))
        del k
        torch.full((N, H, P), 99, dtype=torch.bfloat16, device="cuda")
    for result, value in results:
        check(result, value)


def test_threads_with_streams_of_their_own():
    failures = []

    def work(index):
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for value in range(20):
                    k = new_k()
                    mlacat.concat_mla_k(k, *inputs(value))
                    result = k.clone()
                    stream.synchronize()
                    check(result, value)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append((index, repr(error)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_thread_that_has_done_nothing_yet(shared_daemon):
    """Not even torch has given it a context, on which it depends what the default stream is."""
    with mlacat.Client(shared_daemon.socket, "thread") as client:
        for value in range(3):
            k, (k_nope, k_rope) = new_k(), inputs(value)
            thread = threading.Thread(target=client.concat_mla_k, args=(k, k_nope, k_rope))
            thread.start()
            thread.join()
            check(k.clone(), value)


def test_capture_as_the_first_thing(shared_daemon):
    """Nothing is registered or opened for a call that cannot be."""
    k, (k_nope, k_rope) = new_k(), inputs(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with mlacat.Client(shared_daemon.socket, "capture") as client:
        with torch.cuda.graph(graph):
            k_nope.add_(1)
            with pytest.raises(mlacat.CaptureError):
                client.concat_mla_k(k, k_nope, k_rope)
        assert client._held() == {"segments": 0, "streams": 0}
        graph.replay()
        client.concat_mla_k(k, k_nope, k_rope)
        assert k[..., :P].unique().tolist() == [2]


def test_capture_is_refused_and_goes_on():
    k, (k_nope, k_rope) = new_k(), inputs(1)
    mlacat.concat_mla_k(k, k_nope, k_rope)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        k_nope.add_(1)
        with pytest.raises(mlacat.CaptureError) as caught:
            mlacat.concat_mla_k(k, k_nope, k_rope)
        with pytest.raises(mlacat.CaptureError):
            mlacat.concat_mla_absorb_q(k_nope, k_nope)
    assert caught.value.code == 9
    graph.replay()
    torch.cuda.synchronize()
    assert torch.all(k_nope == 2)
    check(k, 1)
    k_rope.fill_(3)
    mlacat.concat_mla_k(k, k_nope, k_rope)
    check(k, 2)


@pytest.fixture
def lenient(shared_daemon):
    """A client that copies in process what the service cannot run."""
    with mlacat.Client(shared_daemon.socket, "lenient", fallback="torch") as client:
        yield client
        torch.cuda.synchronize()


def test_fallback_on_a_stream_that_is_given(daemon):
    """The copy in process is ordered on that stream too, not on the current one."""
    with mlacat.Client(daemon.socket, fallback="torch", reconnect_timeout=0.05) as client:
        daemon.stop(signal.SIGKILL)
        for stream, number in ((torch.cuda.default_stream(), 0), (torch.cuda.default_stream(), 1), (None, None)):
            stream = stream or torch.cuda.Stream()
            k, other = new_k(), torch.cuda.Stream()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                k_nope, k_rope = inputs(7)
            with torch.cuda.stream(other):
                client.concat_mla_k(k, k_nope, k_rope, stream=stream.cuda_stream if number is None else number)
            stream.synchronize()
            check(k, 7)
        daemon.start()


def test_capture_with_a_fallback_is_captured(lenient):
    k, (k_nope, k_rope) = new_k(), inputs(1)
    lenient.concat_mla_k(k, k_nope, k_rope)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lenient.concat_mla_k(k, k_nope, k_rope)
    k_nope.fill_(8)
    k_rope.fill_(9)
    graph.replay()
    check(k, 8)


def test_a_refused_call_fails_its_stream_once():
    k, (k_nope, k_rope) = new_k(), inputs(4)
    rows = torch.zeros(N, H, P + R + P, dtype=torch.bfloat16, device="cuda")
    mlacat.concat_mla_k(rows[..., : P + R], rows[..., R : R + P], k_rope)  # overlaps: only the daemon looks at that
    torch.cuda.synchronize()
    with pytest.raises(mlacat.StreamFailed) as caught:
        mlacat.concat_mla_k(k, k_nope, k_rope)
    assert caught.value.code == 3
    mlacat.concat_mla_k(k, k_nope, k_rope)
    check(k, 4)
