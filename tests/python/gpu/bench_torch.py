# SPDX-License-Identifier: Apache-2.0
"""What a call costs the runner: its Python thread, and the time on its CUDA stream.

    run.sh BUILD --bench [--tokens 4096] [--heads 128] [--root SOURCES]

DeepSeek-V3 prefill by default. Ways: the service, torch's slice assignment (two copies), and the service's kernel in
this process (where BUILD has libmlacat_in_process.so and NVRTC is there). Thread: microseconds until the call returns,
the GPU idle, median of many. Stream: between CUDA events around the call, with the runner's work (a matrix product)
before and after it in the same stream, median of many, in turns. Results are compared bit for bit first.
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
from daemon import Daemon  # noqa: E402

P, R = 128, 64
THREAD_ROUNDS, THREAD_CALLS = 60, 30
STREAM_ROUNDS = 300


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
    torch.matmul(*work)
    before.record()
    call(*arguments)
    after.record()
    torch.matmul(*work)
    torch.cuda.synchronize()
    return before.elapsed_time(after) * 1e3


def in_turns(ways: dict[str, Callable], rounds: int, measure: Callable) -> dict[str, tuple[float, float]]:
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 10):
        for name, call in ways.items():
            value = measure(call)
            if turn >= 10:
                seen[name].append(value)
    return {name: (statistics.median(values), statistics.quantiles(values, n=20)[-1]) for name, values in seen.items()}


def show(title: str, figures: dict[str, tuple[float, float]]) -> None:
    print(f"{title:<28}{'median us':>10}{'p95':>9}   of slices   of in process")
    for name, (median, p95) in figures.items():
        other = f"{median / figures['in process'][0]:12.2f}" if "in process" in figures else "           -"
        print(f"  {name:<26}{median:10.2f}{p95:9.2f}{median / figures['slices'][0]:12.2f}    {other}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--root", default=str(pathlib.Path(__file__).resolve().parents[3]))
    options = parser.parse_args()
    daemon = Daemon("--device", "auto")
    mlacat.configure(socket=daemon.socket, name="bench")
    ways: dict[str, Callable] = {"service": service, "slices": slices}
    in_process = kernel_in_process(options.root)
    if in_process is not None:
        ways["in process"] = in_process
    else:
        print("libmlacat_in_process.so or NVRTC is not here: the kernel is not measured in process")
    arguments = tensors(options.tokens, options.heads)
    results = []
    for call in ways.values():
        arguments[0].zero_()
        call(*arguments)
        results.append(arguments[0].clone())
    assert all(torch.equal(results[0].view(torch.int16), result.view(torch.int16)) for result in results[1:])
    side = 2048
    work = [torch.randn(side, side, device="cuda").bfloat16() for _ in range(2)]
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, mlacat {mlacat.__version__}, bf16, "
          f"N={options.tokens}, H={options.heads}, MPS {'on' if 'CUDA_MPS_PIPE_DIRECTORY' in os.environ else 'off'}")
    small = tensors(16, options.heads)
    show("Python thread (16 tokens)", in_turns(ways, THREAD_ROUNDS, lambda call: thread_us(call, small)))
    show("Python thread", in_turns(ways, THREAD_ROUNDS, lambda call: thread_us(call, arguments)))
    show("caller's stream", in_turns(ways, STREAM_ROUNDS, lambda call: stream_us(call, arguments, work)))
    mlacat.default_client().check()
    mlacat.configure()
    daemon.close()


if __name__ == "__main__":
    main()
