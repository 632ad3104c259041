#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The service against what a model runner would do by itself, in one process on one GPU.

    compare_torch.py --library build/client/libmlacat.so --daemon build/server/mlacatd --out docs

starts that daemon on a socket of its own (or takes the one of --socket), and writes compare_torch.md and
compare_torch.svg. For each call: 64 of it in flight, wall time until the last has ended, median of 9 rounds in which
the ways take turns, on buffers that take turns over more than the caches hold, with random data. Every way's result is
compared, bit for bit, with torch.cat of the same bytes. Exit status 77: no torch or no GPU here; 1: a result was wrong.

    compare_torch.py --selftest [--library ...]

checks what needs no GPU: the table, the plot, the list of models and, with --library and a daemon at its usual place
that serves the host device, a call through the bindings.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Sequence

import compare_table
import mlacat_ctypes
from compare_table import CALLS, COPY, K, MODELS, Q, ROUNDS, SERVICE, Case, Row

SKIPPED = 77
SETS_MAX = 64
ROTATE_BYTES = 1 << 30
ALIGN_BYTES = 256
POISON = 0xA5
START_TIMEOUT_S = 60
MPS_ENABLED = 133  # an attribute of cuDeviceGetAttribute


# ------------------------------------------------------------------------------------------------------ operands


@dataclass
class Operands:
    """One set: tensors of the runner's kind, and bytes for the copy."""

    offset: list[int]  # in the arena
    tensor: list[Any]
    copy_to: Any
    copy_from: Any


class Arena:
    """The memory of a case: one allocation with all sets, filled with random bytes."""

    def __init__(self, torch: Any, case: Case) -> None:
        sizes = [*case.operand_bytes(), case.moved_bytes() // 2, case.moved_bytes() // 2]
        padded = [(size + ALIGN_BYTES - 1) // ALIGN_BYTES * ALIGN_BYTES for size in sizes]
        sets_nr = min(SETS_MAX, ROTATE_BYTES // case.moved_bytes() + 2)
        dtype = {"bf16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn}[case.dtype]
        self.memory = torch.empty(sum(padded) * sets_nr, dtype=torch.uint8, device="cuda")
        self.memory.random_(0, 256)
        self.sets: list[Operands] = []
        at = 0
        for _ in range(sets_nr):
            offsets = [at + sum(padded[:index]) for index in range(len(sizes))]
            bytes_of = [self.memory[offset : offset + size] for offset, size in zip(offsets, sizes)]
            tensors = [part.view(dtype).view(shape) for part, shape in zip(bytes_of, case.shapes())]
            self.sets.append(Operands(offsets[:3], tensors, bytes_of[3], bytes_of[4]))
            at += sum(padded)


# ------------------------------------------------------------------------------------------------------ the ways

# One call on a set; returns the output, the set's own or a new one.
OneCall = Callable[[Operands], Any]


def device_copy(operands: Operands) -> Any:
    """As many bytes as the call moves."""
    operands.copy_to.copy_(operands.copy_from)


def slices(operands: Operands) -> Any:
    """Two assignments; the second input is broadcast."""
    out, first, second = operands.tensor
    width = first.shape[2]
    out[..., :width] = first
    out[..., width:] = second
    return out


def find_kernels() -> tuple[dict[str, dict[str, Callable[..., Any]]], list[str]]:
    """Functions of sgl-kernel and FlashInfer by way and op, and what is missing why."""
    found: dict[str, dict[str, Callable[..., Any]]] = {"sgl-kernel": {}, "FlashInfer": {}}
    notes = []
    try:
        import sgl_kernel

        found["sgl-kernel"] = {K: sgl_kernel.concat_mla_k, Q: sgl_kernel.concat_mla_absorb_q}
    except Exception as why:  # whatever its import runs into on this machine
        notes.append(f"sgl-kernel is not here: {first_line(why)}")
    try:
        from flashinfer.concat_ops import concat_mla_k

        found["FlashInfer"] = {K: concat_mla_k}
    except Exception as why:
        notes.append(f"FlashInfer is not here: {first_line(why)}")
    return found, notes


def first_line(why: BaseException) -> str:
    """An exception for a line of text."""
    text = str(why).strip().split("\n", maxsplit=1)[0]
    return f"{type(why).__name__}: {text}" if text else type(why).__name__


def ways_of(torch: Any, case: Case, kernels: dict[str, dict[str, Callable[..., Any]]]) -> dict[str, OneCall]:
    """Everything that runs in this process."""

    def cat(operands: Operands) -> Any:
        out, first, second = operands.tensor
        return torch.cat((first, second.expand(-1, first.shape[1], -1)), dim=2, out=out)

    ways: dict[str, OneCall] = {COPY: device_copy, "torch slices": slices, "torch.cat": cat}
    for way, functions in kernels.items():
        if case.op in functions:
            ways[way] = one_call(functions[case.op], case.op)
    return ways


def one_call(function: Callable[..., Any], op: str) -> OneCall:
    """Theirs: K's output is an argument, Q's is returned."""

    def call_k(operands: Operands) -> Any:
        function(*operands.tensor)
        return operands.tensor[0]

    def call_q(operands: Operands) -> Any:
        return function(operands.tensor[1], operands.tensor[2])

    return call_k if op == K else call_q


class Service:
    """Calls of a case through the daemon; the arena is registered as one buffer."""

    def __init__(self, client: mlacat_ctypes.Client, device: str, case: Case, arena: Arena) -> None:
        self.client = client
        self.buffer = client.register(arena.memory.data_ptr(), arena.memory.numel())
        self.stream = client.open_stream(device)
        self.calls = [
            mlacat_ctypes.make_call(
                case.op,
                case.dtype,
                [
                    mlacat_ctypes.contiguous(self.buffer, offset, shape)
                    for offset, shape in zip(operands.offset, case.shapes())
                ],
            )
            for operands in arena.sets
        ]
        self.batch = (mlacat_ctypes.Call * CALLS)(*(self.calls[k % len(self.calls)] for k in range(CALLS)))
        self.ids = (ctypes.c_uint64 * CALLS)()

    def close(self) -> None:
        """Gives buffer and stream back."""
        self.client.close_stream(self.stream)
        self.client.release(self.buffer)

    def run_us(self) -> float:
        """The batch, until its last call has ended, which is when all have; the results are taken after that."""
        begin = time.perf_counter_ns()
        self.client.submit(self.stream, self.batch, self.ids)
        self.client.wait(self.stream, self.ids[CALLS - 1])
        taken = time.perf_counter_ns() - begin
        for index in range(CALLS - 1):
            self.client.wait(self.stream, self.ids[index])
        return taken / 1e3 / CALLS

    def run_one(self, index: int) -> None:
        """One call on one set."""
        batch = (mlacat_ctypes.Call * 1)(self.calls[index])
        ids = (ctypes.c_uint64 * 1)()
        self.client.submit(self.stream, batch, ids)
        self.client.wait(self.stream, ids[0])


def run_us(torch: Any, call: OneCall, sets: Sequence[Operands]) -> float:
    """As Service.run_us, for calls in this process."""
    begin = time.perf_counter_ns()
    for k in range(CALLS):
        call(sets[k % len(sets)])
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - begin) / 1e3 / CALLS


# ------------------------------------------------------------------------------------------------------ measuring


def is_right(torch: Any, operands: Operands, run: Callable[[], Any]) -> bool:
    """Poisons the output, runs, and compares with torch.cat of the bytes."""
    out, first, second = (tensor.view(torch.uint8) for tensor in operands.tensor)
    expected = torch.cat((first, second.expand(-1, first.shape[1], -1)), dim=2)
    out.fill_(POISON)
    torch.cuda.synchronize()
    result = run()
    torch.cuda.synchronize()
    return torch.equal(result.view(torch.uint8) if result is not None else out, expected)


def drop_broken(torch: Any, case: Case, ways: dict[str, OneCall], operands: Operands, notes: list[str]) -> None:
    """Removes the ways that refuse this case."""
    for way in list(ways):
        try:
            ways[way](operands)
            torch.cuda.synchronize()
        except Exception as why:  # of any library, for a dtype or shape that it does not take
            note = f"{way} does not take {case.name()}: {first_line(why)}"
            print(note, file=sys.stderr)
            if not any(known.startswith(f"{way} does") and known.endswith(first_line(why)) for known in notes):
                notes.append(note)
            del ways[way]


def measure(torch: Any, case: Case, ways: dict[str, OneCall], service: Service, arena: Arena) -> Row:
    """All ways in turns; each round begins with another one."""
    row = Row(case)
    runs: dict[str, Callable[[], float]] = {
        way: lambda call=call: run_us(torch, call, arena.sets) for way, call in ways.items()
    }
    runs[SERVICE] = service.run_us
    times: dict[str, list[float]] = {way: [] for way in runs}
    order = list(runs)
    for turn in range(ROUNDS + 1):
        for way in order:
            taken = runs[way]()
            if turn > 0:  # the first warms up
                times[way].append(taken)
        order = order[1:] + order[:1]
    for way, taken_us in times.items():
        row.us[way] = statistics.median(taken_us)
        row.ratio[way] = statistics.median(copy / own for copy, own in zip(times[COPY], taken_us))
    for index in {0, len(arena.sets) - 1}:
        operands = arena.sets[index]
        for way, call in ways.items():
            if way != COPY and not is_right(torch, operands, lambda: call(operands)):
                row.wrong.add(way)
        if not is_right(torch, operands, lambda: service.run_one(index)):
            row.wrong.add(SERVICE)
    return row


def measure_all(
    torch: Any, client: mlacat_ctypes.Client, device: str, cases: Sequence[Case]
) -> tuple[list[Row], list[str]]:
    """The rows, and notes on what is missing in them."""
    rows = []
    kernels, notes = find_kernels()
    for case in cases:
        arena = Arena(torch, case)
        torch.cuda.synchronize()
        service = Service(client, device, case, arena)
        ways = ways_of(torch, case, kernels)
        drop_broken(torch, case, ways, arena.sets[0], notes)
        row = measure(torch, case, ways, service, arena)
        service.close()
        rows.append(row)
        figures = ", ".join(f"{way} {row.us[way]:.2f} us ({row.ratio[way]:.3f})" for way in row.us)
        print(f"{case.name()}: {figures}{'; WRONG: ' + ', '.join(sorted(row.wrong)) if row.wrong else ''}", flush=True)
        del service, ways, arena
        torch.cuda.empty_cache()
    return rows, notes


def mps_state() -> str:
    """'with MPS' or 'without MPS', for the current device of this process."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    value = ctypes.c_int()
    if driver.cuCtxGetDevice(ctypes.byref(device)) != 0:
        return "MPS unknown"
    if driver.cuDeviceGetAttribute(ctypes.byref(value), MPS_ENABLED, device) != 0:
        return "MPS unknown"
    return "with MPS" if value.value else "without MPS"


def facts_of(torch: Any, client: mlacat_ctypes.Client) -> list[str]:
    """What was measured on what."""
    properties = torch.cuda.get_device_properties(0)
    driver = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    today = datetime.date.today()
    return [
        f"One {properties.name}, driver for CUDA {driver.value // 1000}.{driver.value % 1000 // 10}, {mps_state()};",
        f"torch {torch.__version__}, mlacat {client.version()}; {today.day} {today:%B %Y}.",
    ]


# ------------------------------------------------------------------------------------------------------ the daemon


def serve(daemon: str, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """Starts the daemon for all GPUs; returns it and its socket."""
    socket = f"{folder}/mlacatd.sock"
    log = open(f"{folder}/log", "wb")
    process = subprocess.Popen([daemon, "--socket", socket, "--device", "all"], stdout=log, stderr=log)
    log.close()
    return process, socket


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end; makes it end if it does not."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find_device(
    library: str, socket: str | None, uuid: str, process: subprocess.Popen[bytes] | None
) -> mlacat_ctypes.Client:
    """A client of a daemon that serves that GPU; waits for both to be there, or until the daemon has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client = mlacat_ctypes.Client(library, socket, "compare_torch")
            devices = client.devices()
            if any(device.uuid == uuid and device.available for device in devices):
                return client
            client.close()
            why = "; ".join(f"{device.uuid} {device.reason}" for device in devices)
            reason = f"the daemon does not serve {uuid}, it has: {why}"
        except mlacat_ctypes.MlacatError as error:
            reason = str(error)
        if time.monotonic() > deadline or (process and process.poll() is not None):
            raise SystemExit(f"compare_torch.py: {reason}")
        time.sleep(0.05)


def chosen(cases: Iterable[Case], pattern: str) -> Iterator[Case]:
    """Those whose name has the pattern in it."""
    return (case for case in cases if re.search(pattern, case.name()))


def compare(options: argparse.Namespace) -> int:
    """Measures and writes."""
    try:
        import torch
    except ImportError as why:
        print(f"SKIPPED: {why}")
        return SKIPPED
    if not torch.cuda.is_available():
        print("SKIPPED: torch finds no GPU")
        return SKIPPED
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    process = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            socket = options.socket
            if options.daemon:
                process, socket = serve(options.daemon, folder)
            client = find_device(options.library, socket, uuid, process)
            cases = list(chosen(compare_table.all_cases(compare_table.read_models(MODELS.read_text())), options.only))
            rows, notes = measure_all(torch, client, uuid, cases)
            facts = facts_of(torch, client)
            client.close()
        finally:
            if process:
                stop(process)
                print(pathlib.Path(folder, "log").read_text(errors="replace"), file=sys.stderr)
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    command = "python3 tests/bench/compare_torch.py --library libmlacat.so --daemon mlacatd --out docs"
    (out / "compare_torch.md").write_text(compare_table.markdown(rows, facts, notes, command))
    (out / "compare_torch.svg").write_text(compare_table.plot(rows, "How close each way comes to a device copy"))
    return 1 if any(row.wrong for row in rows) else 0


# ------------------------------------------------------------------------------------------------------ self test


def test_page() -> None:
    """The table has what was measured, and says what was not; the plot is well-formed."""
    cases = compare_table.all_cases(compare_table.read_models(MODELS.read_text()))
    assert len(cases) > 10 and len({case.name() for case in cases}) == len(cases)
    assert Case(K, "bf16", 2, 3, 4, 2).moved_bytes() == 2 * (2 * 3 * 6 + 2 * 3 * 4 + 2 * 2)
    assert Case(Q, "fp8_e4m3", 2, 3, 4, 2).moved_bytes() == 2 * (2 * 3 * 6)
    rows = [
        Row(cases[0], {COPY: 40.0, "torch.cat": 80.0, SERVICE: 41.0}, {COPY: 1, "torch.cat": 0.5, SERVICE: 0.976}),
        Row(cases[-1], {COPY: 5.0, SERVICE: 2.0}, {COPY: 1, SERVICE: 2.5}, {SERVICE}),
    ]
    page = compare_table.markdown(rows, ["One GPU <of a kind>."], ["sgl-kernel is not here"], "command")
    assert "| 40.00 | - | 80.00 (0.500) | - | - | 41.00 (0.976) |" in page
    assert "| 5.00 | - | - | - | - | 2.00 (2.500) WRONG |" in page
    assert page.endswith("\n- sgl-kernel is not here\n")
    picture = compare_table.plot(rows, "A < B & C")
    root = xml.etree.ElementTree.fromstring(picture)
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if len(bar) == 1]
    assert len(bars) == 3, "a bar for each ratio but the copy's own"
    widths = sorted(float(bar.get("width", "0")) for bar in bars)
    assert abs(widths[2] / widths[0] - 5) < 0.01, "bars as long as their values"


def test_call(library: str) -> None:
    """A call on the host device, through every binding that does not need a GPU."""
    client = mlacat_ctypes.Client(library, None, "compare_torch")
    host = next(device for device in client.devices() if device.kind == "host")
    assert host.available and host.uuid == "host"
    case = Case(K, "bf16", 2, 3, 4, 2)
    stream = client.open_stream(host.uuid)
    buffers = [client.alloc(host.uuid, size) for size in case.operand_bytes()]
    first, second = buffers[1][1], buffers[2][1]
    first[:] = bytes(range(48))
    second[:] = bytes(range(100, 108))
    operands = [mlacat_ctypes.contiguous(buffer, 0, shape) for (buffer, _), shape in zip(buffers, case.shapes())]
    calls = (mlacat_ctypes.Call * 2)(*[mlacat_ctypes.make_call(case.op, case.dtype, operands)] * 2)
    ids = (ctypes.c_uint64 * 2)()
    client.submit(stream, calls, ids)
    for call_id in ids:
        client.wait(stream, call_id)
    expected = b"".join(
        bytes(first[8 * row : 8 * row + 8]) + bytes(second[4 * (row // 3) : 4 * (row // 3) + 4]) for row in range(6)
    )
    assert bytes(buffers[0][1]) == expected
    operands[0].strides[1] = 0
    calls = (mlacat_ctypes.Call * 1)(mlacat_ctypes.make_call(case.op, case.dtype, operands))
    ids = (ctypes.c_uint64 * 1)()
    client.submit(stream, calls, ids)
    try:
        client.wait(stream, ids[0])
        raise AssertionError("an output whose rows lie on each other is refused")
    except mlacat_ctypes.MlacatError as refused:
        assert "stride" in str(refused), refused
    client.close_stream(stream)
    client.close()


def selftest(library: str | None) -> int:
    """Raises AssertionError where something is wrong."""
    test_page()
    if library:
        test_call(library)
    print("all right")
    return 0


def main() -> int:
    """Parses and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="path of libmlacat.so")
    parser.add_argument("--daemon", help="path of mlacatd, to start one here")
    parser.add_argument("--socket", help="of a daemon that runs already (default: its usual place)")
    parser.add_argument("--out", default="docs", help="folder for compare_torch.md and compare_torch.svg")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose name has this regular expression")
    parser.add_argument("--selftest", action="store_true", help="check what needs no GPU")
    options = parser.parse_args()
    if options.selftest:
        return selftest(options.library)
    if not options.library:
        parser.error("--library is needed: the path of libmlacat.so")
    return compare(options)


if __name__ == "__main__":
    sys.exit(main())
