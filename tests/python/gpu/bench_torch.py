# SPDX-License-Identifier: Apache-2.0
"""What a call costs the runner: its Python thread, and the time on its CUDA stream.

    run.sh BUILD --bench [--tokens 4096] [--heads 128] [--root SOURCES] [--starts N [--mlacatd PATH]...]

DeepSeek-V3 prefill by default. Ways: the service, torch's slice assignment (two copies), and the service's kernel in
this process (where BUILD has libmlacat_in_process.so and NVRTC is there). Thread: microseconds until the call returns.
Stream: between CUDA events around the call, with the runner's work (matrix products) before and after it in the same
stream, long enough that the thread is ahead of the GPU. The median of many counts, the ways take turns. Results are
compared bit for bit first.

With --starts N only the stream's row, and for each of N starts of the daemon, beside the kernel in process: how much
one start differs from the next, and, with --mlacatd (an absolute path) several times, one build of mlacatd from
another, in turns.

Goals: thread at most 0.6 of the slices; stream, under MPS, at most 1.10 of the kernel in process and 0.42 of the
slices. Each is shown with its reference; exit status 1 if one is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import statistics
import sys
import time
from typing import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import mlacat  # noqa: E402
from daemon import Daemon, program  # noqa: E402

P, R = 128, 64
THREAD_ROUNDS, THREAD_CALLS = 100, 30
STREAM_ROUNDS = 400
START_ROUNDS = 300
LATE_US = 10
WARM_UP = 20
SIDE = 4096
THREAD_GOAL = {"slices": 0.6}
STREAM_GOAL = {"in process": 1.10, "slices": 0.42}


class Arguments(ctypes.Structure):
    """struct concat_mla_args of kernels/concat_mla_args.h, in bytes."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("out", "a", "b")] + [
        (name, ctypes.c_longlong)
        for name in (
            *("dim0", "dim1", "out_stride0", "out_stride1", "a_stride0", "a_stride1", "b_stride0", "b_stride1"),
            *("a_bytes", "b_bytes"),
        )
    ]


def service(k, k_nope, k_rope):
    mlacat.concat_mla_k(k, k_nope, k_rope)


def slices(k, k_nope, k_rope):
    k[..., :P] = k_nope
    k[..., P:] = k_rope


def kernel_in_process(root: str) -> Callable | None:
    build = pathlib.Path(os.environ["MLACAT_BUILD"])
    paths = [path for path in (build, build / "lib", build / "tests" / "gpu")
             if (path / "libmlacat_in_process.so").exists()]
    if not paths:
        return None
    library = ctypes.CDLL(str(paths[0] / "libmlacat_in_process.so"))
    if library.mlacat_in_process_open(root.encode()) != 0:
        return None
    library.mlacat_in_process_call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def call(k, k_nope, k_rope):
        size = k.itemsize
        arguments = Arguments(
            k.data_ptr(), k_nope.data_ptr(), k_rope.data_ptr(), k.shape[0], k.shape[1],
            *(stride * size for stride in (*k.stride()[:2], *k_nope.stride()[:2], k_rope.stride(0))), 0,
            k_nope.shape[2] * size, k_rope.shape[2] * size,
        )
        library.mlacat_in_process_call(ctypes.byref(arguments), torch.cuda.current_stream().cuda_stream)

    return call


def tensors(tokens: int, heads: int):
    k_nope = torch.randn(tokens, heads, 2 * P, device="cuda").bfloat16()[..., :P]
    k_rope = torch.randn(tokens, 1, 2112, device="cuda").bfloat16()[..., 2048:]
    return torch.empty(tokens, heads, P + R, dtype=torch.bfloat16, device="cuda"), k_nope, k_rope


def runner_work():
    """The matrices of the runner's work: two factors, and where their product goes."""
    return [torch.randn(SIDE, SIDE, device="cuda").bfloat16() for _ in range(3)]


def compare_results(ways: dict[str, Callable], arguments) -> None:
    results = []
    for call in ways.values():
        arguments[0].zero_()
        call(*arguments)
        results.append(arguments[0].clone())
    assert all(torch.equal(results[0].view(torch.int16), result.view(torch.int16)) for result in results[1:])


def thread_us(call: Callable, arguments) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(THREAD_CALLS):
        call(*arguments)
    took = (time.perf_counter() - began) / THREAD_CALLS * 1e6
    torch.cuda.synchronize()
    return took


def stream_us(call: Callable, arguments, work) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.mm(work[0], work[1], out=work[2])
    before.record()
    call(*arguments)
    after.record()
    torch.mm(work[0], work[1], out=work[2])
    torch.cuda.synchronize()
    return before.elapsed_time(after) * 1e3


def in_turns(ways: dict[str, Callable], rounds: int, measure: Callable) -> dict[str, list[float]]:
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + WARM_UP):
        for name, call in ways.items():
            value = measure(call)
            if turn >= WARM_UP:
                seen[name].append(value)
    return seen


def show(title: str, seen: dict[str, list[float]], goals: dict[str, float]) -> bool:
    """Prints the figures and how the service stands to each reference. False: a goal is missed."""
    median = {name: statistics.median(values) for name, values in seen.items()}
    print(f"\n{title}\n  {'way':<14}{'median us':>10}{'p5':>9}{'p95':>9}")
    for name, values in seen.items():
        parts = statistics.quantiles(values, n=20)
        print(f"  {name:<14}{median[name]:10.2f}{parts[0]:9.2f}{parts[-1]:9.2f}")
    met = True
    for reference in ("slices", "in process"):
        if reference not in median:
            print(f"  service / {reference:<12}{'-':>6}   not measured" + (": MISS" if reference in goals else ""))
            met = met and reference not in goals
            continue
        ratio = median["service"] / median[reference]
        goal = goals.get(reference)
        verdict = "" if goal is None else f"   goal {goal:.2f}: {'pass' if ratio <= goal else 'MISS'}"
        print(f"  service / {reference:<12}{ratio:6.3f}{verdict}")
        met = met and (goal is None or ratio <= goal)
    return met


def costs_of_parts(arguments) -> None:
    """Where the thread's time goes: what a call costs that has nothing to do, and what torch's own steps cost."""
    k, k_nope, k_rope = arguments
    empty = k[:0], k_nope[:0], k_rope[:0]
    event = torch.cuda.Event()
    parts = {
        "service, zero tokens": lambda: mlacat.concat_mla_k(*empty),
        "torch.empty_like": lambda: torch.empty_like(k),
        "event record": lambda: event.record(),
        "current_stream": lambda: torch.cuda.current_stream(),
    }
    print("\nPython thread, parts")
    for name, call in parts.items():
        print(f"  {name:<24}{statistics.median(thread_us(lambda: call(), ()) for _ in range(30)):8.2f} us")


def started(daemon: Daemon) -> tuple[int, int, int]:
    """Stream-ordered calls so far, how many of them the GPU started by itself, and how often it gave one back."""
    (device,) = daemon.stats()["devices"]
    return device["gated_calls"], device["armed_calls"], device["armed_lapses"]


def measure_start(path: str, ways: dict[str, Callable], arguments, work) -> tuple[float, list[float]]:
    """Starts that mlacatd, prints a line, and gives the median time over the kernel in process, and each call's."""
    daemon = Daemon("--device", "auto", mlacatd=path)
    mlacat.configure(socket=daemon.socket, name="bench")
    compare_results(ways, arguments)
    seen = in_turns(ways, START_ROUNDS, lambda call: stream_us(call, arguments, work))
    calls, armed, lapses = started(daemon)
    mlacat.default_client().check()
    mlacat.configure()
    daemon.close()
    service_us, kernel_us = (statistics.median(seen[way]) for way in ("service", "in process"))
    p95 = statistics.quantiles(seen["service"], n=20)[-1]
    print(f"  {path}: {service_us:.2f} us (p95 {p95:.2f}), in process {kernel_us:.2f}, "
          f"{service_us - kernel_us:+.2f} us, {service_us / kernel_us:.3f}; "
          f"of {calls} calls the GPU started {armed} by itself, it gave {lapses} back",
          flush=True)
    return service_us - kernel_us, seen["service"]


def late_calls(calls: list[float]) -> int:
    late_us = statistics.median(calls) + LATE_US
    return sum(call_us > late_us for call_us in calls)


def compare_starts(options, ways: dict[str, Callable], arguments) -> None:
    work = runner_work()
    paths = options.mlacatd or [program("mlacatd")]
    seen: dict[str, list[tuple[float, list[float]]]] = {path: [] for path in paths}
    print(f"caller's stream, {options.starts} starts of each daemon in turns")
    for start in range(options.starts):
        for path in paths if start % 2 == 0 else reversed(paths):
            seen[path].append(measure_start(path, ways, arguments, work))
    print("more than in process: median, least, most; of all calls")
    for path, starts in seen.items():
        over = [over_us for over_us, _ in starts]
        calls = [call_us for _, of_start in starts for call_us in of_start]
        late = sum(late_calls(of_start) for _, of_start in starts)
        print(f"  {path}: {statistics.median(over):.2f} us, {min(over):.2f}, {max(over):.2f}; "
              f"p99 {statistics.quantiles(calls, n=100)[-1]:.1f} us, {late} of {len(calls)} took "
              f"{LATE_US} us more than the median of their start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--root", default=str(pathlib.Path(__file__).resolve().parents[3]))
    parser.add_argument("--starts", type=int, default=0, help="only the stream's row, for so many starts of the daemon")
    parser.add_argument("--mlacatd", action="append", help="absolute path of the daemon to start; several are compared")
    options = parser.parse_args()
    if options.starts:
        in_process = kernel_in_process(options.root)
        if in_process is None:
            parser.error("--starts needs libmlacat_in_process.so and NVRTC")
        compare_starts(options, {"service": service, "in process": in_process},
                       tensors(options.tokens, options.heads))
        return 0
    daemon = Daemon("--device", "auto")
    mlacat.configure(socket=daemon.socket, name="bench")
    ways: dict[str, Callable] = {"service": service, "slices": slices}
    in_process = kernel_in_process(options.root)
    if in_process is not None:
        ways["in process"] = in_process
    else:
        print("libmlacat_in_process.so or NVRTC is not here: the kernel is not measured in process")
    arguments = tensors(options.tokens, options.heads)
    compare_results(ways, arguments)
    mps = "CUDA_MPS_PIPE_DIRECTORY" in os.environ
    work = runner_work()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, mlacat {mlacat.__version__}, bf16, "
          f"N={options.tokens}, H={options.heads}, MPS {'on' if mps else 'off'}")
    small = tensors(16, options.heads)
    thread = "Python thread, an eager call of {} tokens"
    met = [
        show(thread.format(16), in_turns(ways, THREAD_ROUNDS, lambda call: thread_us(call, small)), THREAD_GOAL),
        show(thread.format(options.tokens), in_turns(ways, THREAD_ROUNDS, lambda call: thread_us(call, arguments)),
             THREAD_GOAL),
    ]
    before = started(daemon)
    met.append(
        show("caller's stream, runner work before and after" + ("" if mps else " (the goals are for MPS)"),
             in_turns(ways, STREAM_ROUNDS, lambda call: stream_us(call, arguments, work)), STREAM_GOAL if mps else {})
    )
    calls, armed, lapses = (after - then for after, then in zip(started(daemon), before))
    print(f"  of {calls} calls the GPU started {armed} by itself; it gave {lapses} back")
    costs_of_parts(small)
    mlacat.default_client().check()
    mlacat.configure()
    daemon.close()
    print("\nall goals are met" if all(met) else "\na goal is MISSED")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
