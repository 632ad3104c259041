# SPDX-License-Identifier: Apache-2.0
"""test_second_client.py MLACATD: the second client runs both ops as messages and through rings on a daemon of its own.

It checks every byte, and meets each kind of error.
"""
import ctypes
import itertools
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time

from second_client import DTYPES, FLAG, LIMIT_S, LOW, OPS, REQUEST
from second_client import Call, Connection, Memory, Ring, Rings, Stream, Values, encode, outcomes, told

CALLS = 8  # in flight on a stream


def until(true):
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline


def small_call(memory, op=1, dtype=1, stride=8, offset=0):
    out, first, second = memory
    return Call(op, dtype, (2, 2, 4, 4), [(out, offset, (16, stride)), (first, 0, (8, 4)), (second, 0, (4, 4))])


def check_calls(stream, memory):
    """Both ops in all dtypes, with gaps between rows, a negative stride and odd offsets; then calls that are wrong."""
    dims = dim0, dim1, first, second = 5, 3, 7, 4
    for op, dtype in itertools.product(OPS, DTYPES):
        row = (1 if OPS[op] == "BROADCAST" else dim1) * (second + 2)
        call = Call(op, dtype, dims, [(memory[0], 3, (dim1 * (first + second + 1), first + second + 1)),
                                      (memory[1], 1, (first + 2, dim0 * (first + 2))),
                                      (memory[2], 5 + (dim0 - 1) * row * DTYPES[dtype], (-row, second + 2))])
        for m in memory:
            m.bytes[:] = random.randbytes(len(m.bytes))
        expected = call.expected()
        stream.submit((op, call))
        assert stream.wait(1) == [(op, "OK")] and memory[0].bytes[:] == expected, (op, dtype)
    missing = Values(registered=Values(buffer=Values(id=77, generation=1)))
    for refusal, call in (("INVALID_ARGUMENT", small_call(memory, dtype=99)),
                          ("INVALID_ARGUMENT", small_call(memory, stride=7)),  # rows meet
                          ("INVALID_ARGUMENT", small_call(memory, offset=4090)),  # past the end
                          ("NOT_FOUND", small_call([missing, *memory[1:]])),
                          ("UNIMPLEMENTED", small_call(memory, op=99))):
        stream.submit((1, call))
        assert stream.wait(1) == [(1, refusal)] and memory[0].bytes[:] == expected, refusal


def check_messages(path):
    connection = Connection(path)
    assert [d.uuid for d in connection.welcome.devices] == ["host"]
    assert connection.welcome.limits.stream_calls == CALLS
    stream, memory = Stream(connection), [Memory(connection) for _ in range(3)]
    check_calls(stream, memory)
    good, name = small_call(memory), vars(stream.ref)
    stream.submit(*[(i, good) for i in range(CALLS + 2)])
    too_many = [(i, "RESOURCE_EXHAUSTED") for i in (CALLS, CALLS + 1)]
    assert sorted(stream.wait(CALLS + 2)) == [(i, "OK") for i in range(CALLS)] + too_many
    assert told(Memory(connection, seals=0).registered.status) == "FAILED_PRECONDITION"

    # A large call holds those behind it: one is too late, one is cancelled, nearly always in time.
    large = [Memory(connection, 1 << 24) for _ in range(2)]
    operands = [(large[0], 0, (2048, 0)), (large[1], 0, (1024, 0)), (memory[2], 0, (0, 0))]
    slow = Call(1, 5, (1024, 1, 1024, 1024), operands)
    stream.submit((0, slow), (1, good, {"deadline_us": 1}), (2, good))
    cancelled = told(connection.ask(cancel={"stream": name, "call_id": 2}).status) == "OK"
    assert sorted(stream.wait(3)) == [(0, "OK"), (1, "DEADLINE_EXCEEDED"), (2, "CANCELLED" if cancelled else "OK")]
    assert told(connection.ask(cancel={"stream": name, "call_id": 2}).status) == "NOT_FOUND"
    stream.submit((0, slow))
    closed = connection.send(close_stream={"stream": name})
    assert told(connection.ask(unregister_buffer={"buffer": slow.buffers[0]}).status) == "OK"
    assert told(connection.reply(closed).status) == "OK" and stream.wait(1) == [(0, "OK")]
    stream.submit((0, good))
    assert stream.wait(1) == [(0, "NOT_FOUND")]


def check_breaches(path):
    connection = Connection(path, hello=False)
    connection.send(health_request={})
    assert connection.end() == "UNAUTHENTICATED SESSION"
    for packet in (b"\xff\xff", b"\x08\x05", encode("Envelope", {"health_request": {}})):  # without body; without id
        connection = Connection(path)
        connection.socket.send(packet)
        assert connection.end() == "INVALID_ARGUMENT SESSION", packet
    connection = Connection(path)
    connection.send([0], health_request={})
    assert connection.end() == "INVALID_ARGUMENT SESSION", "a descriptor that nothing names"
    for flags, ahead in ((1 << 31, 0), (0, 2 * CALLS)):
        connection = Connection(path)
        ring = Ring(connection, Rings(connection))
        ring.write(1, flags=flags)
        ring.sequence += ahead
        ring.publish()
        assert connection.end() == "INVALID_ARGUMENT SESSION", flags


def check_rings(path):
    connection = Connection(path)
    refused = connection.ask(open_stream={"device_uuid": "host", "ring": True})
    assert told(refused.status) == "FAILED_PRECONDITION"
    memory, rings = [Memory(connection) for _ in range(3)], Rings(connection)
    assert told(connection.ask(open_rings={}).status) == "ALREADY_EXISTS"
    ring, good = Ring(connection, rings), small_call(memory)
    check_calls(ring, memory)

    # Full batches, awaited by the fence alone, use each entry several times. The first moves it past the failed calls.
    for _ in range(3 * rings.layout.entries // CALLS):
        failed, expected = ring.load("failed"), good.expected()
        ring.submit(*[(i, good, {"flags": FLAG["DONE"]}) for i in range(CALLS)])
        until(lambda: ring.load("fence") == ring.sequence == ring.load("done"))
        assert ring.load("failed") == failed and memory[0].bytes[:] == expected
        assert ring.wait(CALLS) == [(i, "OK") for i in range(CALLS)]
    # A call that fails leaves the fence where it is and is counted.
    ring.submit((1, small_call(memory, op=99)))
    assert ring.wait(1) == [(1, "UNIMPLEMENTED")]
    assert (ring.load("fence"), ring.load("failed")) == (ring.sequence - 1, failed + 1)

    # Both sides sleep, and are woken: the worker by the doorbell, the client by a call that comes too late.
    until(lambda: ring.load("sleeping"))
    ready = ring.load("ready") + 1
    ring.submit((1, good, {"flags": FLAG["READY"], "ready": ready, "deadline_us": 50_000}))
    assert ring.wait(1) == [(1, "DEADLINE_EXCEEDED")]

    # A call that waits holds those behind it. The ring is full, but for a request to cancel one of them.
    ring.submit((0, good, {"flags": FLAG["READY"], "ready": ready}), *[(i, good) for i in range(1, CALLS)])
    ring.submit((REQUEST, None, {"flags": FLAG["CANCEL"], "ready": 2}))
    assert sorted(ring.wait(2)) == [(2, "CANCELLED"), (REQUEST, "OK")]
    ring.store("ready", ready)
    assert ring.wait(CALLS - 1) == [(i, "OK") for i in range(CALLS) if i != 2]
    ring.submit((REQUEST, None, {"flags": FLAG["CANCEL"], "ready": 2}))
    assert ring.wait(1) == [(REQUEST, "NOT_FOUND")]

    # What was published before the stream is closed runs, and the ring's numbers go on.
    ring.submit((1, good))
    assert told(connection.ask(close_stream={"stream": vars(ring.opened.stream)}).status) == "OK"
    assert ring.completions() == [(1, "OK")]
    again = Ring(connection, rings)
    assert (again.opened.ring, again.sequence) == (ring.opened.ring, ring.sequence)
    again.submit((2, good))
    assert again.wait(1) == [(2, "OK")]


def check_stats_and_drain(path):
    connection = Connection(path)
    stats = connection.ask(stats_request={})
    assert {o.code: o.count for o in stats.outcomes} == {c: n for c, n in outcomes.items() if n}
    call, stream, rings = small_call([Memory(connection) for _ in range(3)]), Stream(connection), Rings(connection)
    held, ring = Ring(connection, rings), Ring(connection, rings)
    held.submit((1, call, {"flags": FLAG["READY"], "ready": 1}))
    until(lambda: held.load("submit_head") == held.sequence & LOW)

    assert told(connection.ask(drain={}).status) == "OK"
    stream.submit((1, call))
    assert stream.wait(1) == [(1, "UNAVAILABLE")]
    ring.submit((1, call))
    while (ended := ring.wait(1)) == [(1, "OK")]:  # the worker has not heard of it yet
        ring.submit((1, call))
    assert ended == [(1, "UNAVAILABLE")]
    assert not connection.ask(health_request={}).ready and held.completions() == []
    held.store("ready", 1)
    assert connection.end() == "OK" and held.completions() == [(1, "OK")]
    assert select.select(connection.welcome.fds, [], [], LIMIT_S)[0], "the pidfd tells of the daemon's end"


def is_ready(path):
    try:
        return Connection(path).ask(health_request={}).ready
    except OSError:
        return False


def main():
    prctl = ctypes.CDLL(None).prctl
    with tempfile.TemporaryDirectory(prefix="mlacat-") as folder:
        path = f"{folder}/socket"
        command = [sys.argv[1], "--socket", path, "--device", "host", "--max-stream-calls", str(CALLS)]
        daemon = subprocess.Popen(command, preexec_fn=lambda: prctl(1, signal.SIGKILL))  # it ends with this process
        try:
            until(lambda: is_ready(path))
            for check in (check_messages, check_breaches, check_rings, check_stats_and_drain):
                check(path)
                print("passed:", check.__name__)
            assert daemon.wait(LIMIT_S) == 0
        finally:
            daemon.kill()


main()
