# SPDX-License-Identifier: Apache-2.0
"""Stream-ordered calls over the fake CUDA driver: registered segments, streams, failures. Runs where
MLACAT_FAKE_CUDA_FOLDER names the folder of the fake libcuda.so.1 and the loader finds it first (run.sh sets both)."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import sys
import threading
import time
import types

import pytest

import dlpack
import mlacat
from daemon import Daemon
from fake_gpu import FakeGpu, GrowingSegment, LongTrio, Trio
from test_lifecycle import call_until

FILES = "/memfd:fake-cuda"
FOLDER = os.environ.get("MLACAT_FAKE_CUDA_FOLDER", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="MLACAT_FAKE_CUDA_FOLDER is not set")


@pytest.fixture(scope="module")
def gpu():
    gpu = FakeGpu()
    if not gpu.has("cuStreamGetId"):
        pytest.skip("the fake driver has no cuStreamGetId")
    return gpu


@pytest.fixture
def gpu_daemon():
    daemon = Daemon("--device", "auto", env={"LD_LIBRARY_PATH": FOLDER})
    yield daemon
    daemon.close()


@pytest.fixture
def gpu_client(gpu, gpu_daemon):
    with mlacat.Client(gpu_daemon.socket, reconnect_timeout=0.2) as client:
        yield client


def run(client, gpu, trio, stream):
    trio.clear()
    client.concat_mla_k(*trio.arrays, stream=stream)
    gpu.synchronize(stream)
    assert trio.is_right()


def make_it_fail(gpu, daemon, client, stream):
    """By an input that overlaps the output: only the daemon looks at that."""
    trio = Trio(gpu.alloc(Trio.BYTES))
    n, h, p, r = Trio.N, Trio.H, Trio.P, Trio.R
    inside = dlpack.Array(trio.at[0] + 2 * r, (n, h, p), (h * (p + r), p + r, 1), device=(dlpack.CUDA, 0))
    refused = daemon.stats()["outcomes"]["INVALID_ARGUMENT"]
    client.concat_mla_k(trio.arrays[0], inside, trio.arrays[2], stream=stream)
    gpu.synchronize(stream)
    # The client waits 20 ms for what is to follow: a slow machine may take longer.
    call_until(lambda: daemon.stats()["outcomes"]["INVALID_ARGUMENT"] > refused, time.sleep, 0.001)


def test_one_registration_for_a_segment(gpu, gpu_client):
    segment, stream = gpu.alloc(4 * Trio.BYTES), gpu.stream()
    for part in range(4):
        run(gpu_client, gpu, Trio(segment + part * Trio.BYTES), stream)
    assert gpu_client._held() == {"segments": 1, "streams": 1}
    gpu.free(segment)


def test_memory_that_was_freed_is_registered_again(gpu, gpu_client):
    stream = gpu.stream()
    segment = gpu.alloc(Trio.BYTES)
    run(gpu_client, gpu, Trio(segment), stream)
    for size in (Trio.BYTES, 4 * Trio.BYTES, Trio.BYTES):
        gpu.free(segment)
        segment = gpu.alloc(size)
        run(gpu_client, gpu, Trio(segment), stream)
    gpu.free(segment)


def test_operands_in_several_segments(gpu, gpu_client):
    stream = gpu.stream()
    trios = [Trio(gpu.alloc(Trio.BYTES)) for _ in range(3)]
    mixed = Trio(gpu.alloc(Trio.BYTES))
    mixed.arrays = [trios[0].arrays[0], trios[1].arrays[1], trios[2].arrays[2]]
    gpu_client.concat_mla_k(*mixed.arrays, stream=stream)
    gpu.synchronize(stream)
    assert trios[0].is_right()
    assert gpu_client._held()["segments"] == 3


def test_streams_are_bounded(gpu, gpu_client):
    trio = Trio(gpu.alloc(Trio.BYTES))
    for _ in range(40):
        run(gpu_client, gpu, trio, gpu.stream())
    assert gpu_client._held()["streams"] == 32
    gpu_client.check()


def test_producers_learn_the_stream(gpu, gpu_client):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    run(gpu_client, gpu, trio, stream)
    assert [array.streams for array in trio.arrays] == [[stream]] * 3
    assert [array.lent for array in trio.arrays] == [0] * 3


def test_producers_learn_the_stream_of_the_first_call_too(gpu, gpu_daemon, as_default):
    as_default(gpu_daemon)
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    mlacat.concat_mla_k(*trio.arrays, stream=stream)
    gpu.synchronize(stream)
    assert trio.is_right()
    assert {number for array in trio.arrays for number in array.streams} == {stream}


def test_options_that_are_set_tell_of_a_failed_stream(gpu, gpu_daemon, as_default):
    as_default(gpu_daemon)
    make_it_fail(gpu, gpu_daemon, mlacat.default_client(), gpu.stream())
    with pytest.raises(mlacat.StreamFailed):
        mlacat.configure(socket=gpu_daemon.socket, fallback="torch")
    assert mlacat.default_client().fallback == "torch"


def test_current_stream_of_the_exchange_table(gpu, gpu_client):
    streams = [gpu.stream(), gpu.stream()]
    asked = []

    def current(device):
        asked.append(device)
        return streams[len(asked) % 2]

    trio = Trio(gpu.alloc(Trio.BYTES), dlpack.exchange_type(current))
    for _ in range(4):
        trio.clear()
        gpu_client.concat_mla_k(*trio.arrays)
        for stream in streams:
            gpu.synchronize(stream)
        assert trio.is_right()
    assert asked == [0] * 4
    assert gpu_client._held()["streams"] == 2


def test_classes_derived_from_older_tensors(gpu, gpu_client, monkeypatch):
    """Of a torch before 2.10: a program's own class of tensors is ordered on torch's current stream too."""
    stream, asked = gpu.stream(), []

    class Tensor(dlpack.Array):
        __module__ = "torch"
        dtype, is_cuda = "torch.bfloat16", True

        def data_ptr(self):
            return self.tensor.data + self.tensor.byte_offset

        def stride(self):
            return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

        def get_device(self):
            return 0

    class Weight(Tensor):
        __module__ = "model"

    def current_stream(device):
        asked.append(device)
        return types.SimpleNamespace(cuda_stream=stream)

    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(current_stream=current_stream)
    monkeypatch.setitem(sys.modules, "torch", torch)
    for kind in (Tensor, Weight):
        trio = Trio(gpu.alloc(Trio.BYTES), kind)
        trio.clear()
        gpu_client.concat_mla_k(*trio.arrays)
        gpu.synchronize(stream)
        assert trio.is_right()
    assert asked == [0, 0]


def test_call_that_the_daemon_refuses_fails_its_stream_once(gpu, gpu_daemon, gpu_client):
    stream, other = gpu.stream(), gpu.stream()
    trio = Trio(gpu.alloc(Trio.BYTES))
    make_it_fail(gpu, gpu_daemon, gpu_client, stream)
    run(gpu_client, gpu, trio, other)
    with pytest.raises(mlacat.StreamFailed) as caught:
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    assert (caught.value.code, caught.value.scope) == (3, "STREAM")
    run(gpu_client, gpu, trio, stream)


def test_check_tells_of_a_failed_stream(gpu, gpu_daemon, gpu_client):
    stream = gpu.stream()
    trio = Trio(gpu.alloc(Trio.BYTES))
    make_it_fail(gpu, gpu_daemon, gpu_client, stream)
    with pytest.raises(mlacat.StreamFailed):
        gpu_client.check()
    gpu_client.check()
    run(gpu_client, gpu, trio, stream)


def test_daemon_restarts_between_calls(gpu, gpu_daemon, gpu_client):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    run(gpu_client, gpu, trio, stream)
    gpu_daemon.stop(signal.SIGKILL)
    deadline = time.monotonic() + 60
    with pytest.raises((mlacat.ServiceLost, mlacat.StreamFailed)):
        while time.monotonic() < deadline:
            gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    gpu.synchronize(stream)  # nothing waits for the daemon that is gone
    gpu_daemon.start()
    while True:
        try:
            run(gpu_client, gpu, trio, stream)
            return
        except (mlacat.ServiceLost, mlacat.StreamFailed):
            assert time.monotonic() < deadline


def test_close_waits_for_ordered_calls(gpu, gpu_daemon):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    with mlacat.Client(gpu_daemon.socket) as client:
        for _ in range(200):
            client.concat_mla_k(*trio.arrays, stream=stream)
    assert trio.is_right()
    gpu.synchronize(stream)


def test_freed_memory_without_an_allocation_is_refused(gpu, gpu_client):
    stream = gpu.stream()
    segment = gpu.alloc(Trio.BYTES)
    trio = Trio(segment)
    run(gpu_client, gpu, trio, stream)
    gpu.free(segment)
    with pytest.raises(mlacat.Error):
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    assert gpu_client._held()["segments"] == 0


def memory_open_in(daemon):
    """GPU memory that the daemon has open, its own too: files to the fake driver, mapped there."""
    maps = pathlib.Path(f"/proc/{daemon.process.pid}/maps").read_text()
    return len([line for line in maps.splitlines() if FILES in line])


def test_reclaim_has_freed_memory_released(gpu, gpu_daemon, gpu_client):
    stream = gpu.stream()
    segments = [gpu.alloc(Trio.BYTES) for _ in range(3)]
    before = memory_open_in(gpu_daemon)
    for segment in segments:
        run(gpu_client, gpu, Trio(segment), stream)
    gpu_client.reclaim(30)
    words = 1  # memory of the library's own
    assert gpu_daemon.stats()["buffers"] == words + 3 and memory_open_in(gpu_daemon) == before + words + 3
    for segment in segments[1:]:
        gpu.free(segment)
    gpu_client.reclaim(30)
    assert gpu_daemon.stats()["buffers"] == words + 1 and memory_open_in(gpu_daemon) == before + words + 1
    run(gpu_client, gpu, Trio(segments[0]), stream)
    gpu.free(segments[0])


def test_reclaim_has_a_deadline(gpu, gpu_daemon, as_default, monkeypatch):
    for name in ("torch", "torch.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    as_default(gpu_daemon)
    before = memory_open_in(gpu_daemon)
    client, stream, segment = mlacat.default_client(), gpu.stream(), gpu.alloc(Trio.BYTES)
    run(client, gpu, Trio(segment), stream)
    gpu_daemon.send(signal.SIGSTOP)
    gpu.free(segment)
    with pytest.raises(mlacat.Error, match="20000 us") as caught:
        client.reclaim(0.02)
    assert caught.value.status == "DEADLINE_EXCEEDED"
    assert not mlacat.empty_cache(0.02)
    assert not mlacat.empty_cache(-5)  # as 0: it is only begun
    gpu_daemon.send(signal.SIGCONT)
    client.reclaim(None)
    assert mlacat.empty_cache(1e30)
    assert memory_open_in(gpu_daemon) == before + 1  # memory of the library's own


def test_reclaim_of_a_closed_client(gpu, gpu_daemon):
    client = mlacat.Client(gpu_daemon.socket)
    client.reclaim(0)  # no GPU memory yet: there is nothing to wait for
    client.close()
    with pytest.raises(mlacat.PreconditionError):
        client.reclaim()


def test_chunks_of_a_growing_segment_become_one(gpu, gpu_client):
    """A tensor that straddles what is registered and what is new makes one registration of both."""
    stream = gpu.stream()
    segment = GrowingSegment(gpu, 6)
    segment.grow()
    run(gpu_client, gpu, Trio(segment.base), stream)
    for nr in range(2, 7):
        segment.grow()
        run(gpu_client, gpu, Trio(segment.base + (nr - 1) * segment.CHUNK - Trio.K_MIDDLE), stream)
        assert gpu_client._held()["segments"] == 1, nr
    run(gpu_client, gpu, Trio(segment.base), stream)
    assert gpu_client._held()["segments"] == 1


def test_chunks_that_shrink_and_grow_again(gpu, gpu_client):
    stream = gpu.stream()
    segment = GrowingSegment(gpu, 4)
    for _ in range(4):
        segment.grow()
    border = segment.base + 3 * segment.CHUNK - Trio.K_MIDDLE
    for _ in range(3):
        run(gpu_client, gpu, Trio(border), stream)
        run(gpu_client, gpu, Trio(segment.base), stream)
        segment.shrink()
        run(gpu_client, gpu, Trio(segment.base + segment.CHUNK - Trio.K_MIDDLE), stream)
        segment.grow()


def test_memory_of_more_chunks_than_a_registration_has(gpu, gpu_client):
    """Its calls are cut into several by rows, and what is registered for the first one is used by the next."""
    stream = gpu.stream()
    segment = GrowingSegment(gpu, LongTrio.CHUNKS)
    for _ in range(LongTrio.CHUNKS):
        segment.grow()
    trio = LongTrio(segment.base)
    run(gpu_client, gpu, trio, stream)
    held = gpu_client._held()
    assert 2 <= held["segments"] <= 8 and held["streams"] == 1
    run(gpu_client, gpu, trio, stream)
    assert gpu_client._held() == held
    run(gpu_client, gpu, Trio(segment.base), stream)
    n, heads_first = LongTrio.N, LongTrio(segment.base)
    layouts = (((n, 4, 192), (192, n * 192, 1)), ((n, 4, 128), (128, n * 128, 1)), ((n, 1, 64), (64, 64, 1)))
    heads_first.arrays = [
        dlpack.Array(at, shape, strides, device=(dlpack.CUDA, 0)) for at, (shape, strides) in zip(trio.at, layouts)
    ]
    heads_first.clear()
    gpu_client.concat_mla_k(*heads_first.arrays, stream=stream)  # each row reaches through all of the memory
    gpu.synchronize(stream)
    assert heads_first.is_right()


def test_many_segments_are_bounded(gpu, gpu_client):
    stream = gpu.stream()
    kept = []
    for _ in range(300):
        kept.append(gpu.alloc(Trio.BYTES))
        run(gpu_client, gpu, Trio(kept[-1]), stream)
    assert gpu_client._held()["segments"] == 256
    run(gpu_client, gpu, Trio(kept[0]), stream)
    for segment in kept:
        gpu.free(segment)


def test_threads_on_streams_of_their_own(gpu, gpu_client):
    failures = []

    def work():
        try:
            gpu.enter_thread()
            stream = gpu.stream()
            for _ in range(30):
                segment = gpu.alloc(Trio.BYTES)
                run(gpu_client, gpu, Trio(segment), stream)
                gpu.free(segment)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_default_stream(gpu, gpu_client):
    trio = Trio(gpu.alloc(Trio.BYTES))
    for _ in range(3):
        run(gpu_client, gpu, trio, 0)
    assert [array.streams for array in trio.arrays] == [[1, 1, 1]] * 3  # its number in DLPack
    assert gpu_client._held()["streams"] == 1


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("default", [False, True])
def test_thread_without_a_context(gpu, gpu_client, warm, default):
    """torch gives a thread its context with the first work of torch's own: the call may be what comes first."""
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), 0 if default else gpu.stream()
    if warm:
        run(gpu_client, gpu, trio, stream)
    failures = []

    def work():
        try:
            gpu_client.concat_mla_k(*trio.arrays, stream=stream)
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(repr(error))

    trio.clear()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    gpu.synchronize(stream)
    assert trio.is_right()
    assert gpu_client._held() == {"segments": 1, "streams": 1}


@pytest.mark.parametrize("default", [False, True])
def test_capture_is_refused_before_anything_is_touched(gpu, gpu_client, default):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), 0 if default else gpu.stream()
    gpu.capture(stream, True)
    with pytest.raises(mlacat.CaptureError, match="outside of the capture"):
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    assert gpu_client._held() == {"segments": 0, "streams": 0}
    run(gpu_client, gpu, trio, gpu.stream())  # the memory is known, the stream is not
    with pytest.raises(mlacat.CaptureError):
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    assert gpu_client._held() == {"segments": 1, "streams": 1}
    gpu.capture(stream, False)
    run(gpu_client, gpu, trio, stream)
    gpu.capture(stream, True)
    with pytest.raises(mlacat.CaptureError):
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    gpu.capture(stream, False)
    assert gpu_client._held() == {"segments": 1, "streams": 2}
    run(gpu_client, gpu, trio, stream)


def test_capture_without_a_daemon(gpu, gpu_daemon, gpu_client):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    gpu_daemon.stop(signal.SIGKILL)
    gpu.capture(stream, True)
    with pytest.raises(mlacat.CaptureError):
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    gpu_daemon.start()


def test_freed_memory_is_no_capture(gpu, gpu_client):
    trio, stream = Trio(gpu.alloc(Trio.BYTES)), gpu.stream()
    gpu.free(trio.at[0] - 4096)
    with pytest.raises(mlacat.Error) as caught:
        gpu_client.concat_mla_k(*trio.arrays, stream=stream)
    assert not isinstance(caught.value, mlacat.CaptureError)


def test_close_tells_of_a_failed_stream(gpu, gpu_daemon):
    client = mlacat.Client(gpu_daemon.socket)
    make_it_fail(gpu, gpu_daemon, client, gpu.stream())
    with pytest.raises(mlacat.StreamFailed, match="overlaps"):
        client.close()
    assert client.closed and client._held() == {"segments": 0, "streams": 0}
    client.close()
    with pytest.raises(mlacat.StreamFailed), mlacat.Client(gpu_daemon.socket) as client:
        make_it_fail(gpu, gpu_daemon, client, gpu.stream())
    with pytest.raises(ZeroDivisionError), mlacat.Client(gpu_daemon.socket) as client:
        make_it_fail(gpu, gpu_daemon, client, gpu.stream())
        1 / 0
    assert client.closed


def test_stream_that_makes_room_has_failed(gpu, gpu_daemon, gpu_client):
    """The call that needs the room is told, and which stream it is not."""
    make_it_fail(gpu, gpu_daemon, gpu_client, gpu.stream())
    trio = Trio(gpu.alloc(Trio.BYTES))
    with pytest.raises(mlacat.StreamFailed, match="another CUDA stream"):
        for _ in range(40):
            run(gpu_client, gpu, trio, gpu.stream())
    run(gpu_client, gpu, trio, gpu.stream())
