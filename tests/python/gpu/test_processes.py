# SPDX-License-Identifier: Apache-2.0
"""Runners in processes of their own, the daemon's end under them, and memory that comes and goes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest
import torch

import mlacat
from conftest import BACK_SECONDS, give_back
from daemon import end_with_parent

WORKERS = str(pathlib.Path(__file__).with_name("workers.py"))
EXAMPLES = pathlib.Path(__file__).resolve().parents[3] / "client" / "examples"
MIB = 1 << 20


def start(name, daemon, **env):
    return subprocess.Popen(
        [sys.executable, WORKERS, name, daemon.socket],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=end_with_parent,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=80)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the worker did not end within 80 s; it printed:\n{process.communicate()[0]}")
    assert process.returncode == 0, f"the worker ended with {process.returncode}:\n{output}"
    return output


def await_ready(process):
    line = process.stdout.readline()
    assert line.strip() == "READY", f"{line}{process.communicate(timeout=20)[0]}"


@pytest.mark.limit(100)
def test_two_runners(shared_daemon):
    for process in [start("runner", shared_daemon) for _ in range(2)]:
        finish(process)


@pytest.mark.limit(100)
def test_daemon_restarts_under_a_runner(daemon):
    process = start("lasting", daemon)
    await_ready(process)
    daemon.restart()
    finish(process)


@pytest.mark.limit(100)
def test_runner_that_is_killed_leaves_the_others_alone(shared_daemon):
    victim, other = start("runner", shared_daemon), start("runner", shared_daemon)
    await_ready(victim)  # it makes steps from then on; any point of them will do
    time.sleep(0.1)
    victim.kill()
    victim.communicate()
    finish(other)


EXPANDABLE = "expandable_segments:True"


@pytest.mark.limit(100)
def test_expandable_segments(shared_daemon):
    print(finish(start("expandable", shared_daemon, **allocator(EXPANDABLE, ipc="1"))))


@pytest.mark.limit(100)
def test_memory_that_cannot_be_shared(shared_daemon):
    kinds = {
        "expandable segments without TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC": allocator(EXPANDABLE, ipc="0"),
        "cudaMallocAsync": allocator("backend:cudaMallocAsync", ipc="1"),
    }
    for name, process in {name: start("refused", shared_daemon, **env) for name, env in kinds.items()}.items():
        print(f"{name}: {finish(process)}")


def allocator(conf, ipc):
    """PyTorch has renamed the variable; it warns of the old one, and older versions know no other."""
    return {"PYTORCH_CUDA_ALLOC_CONF": conf, "PYTORCH_ALLOC_CONF": conf, "TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC": ipc}


@pytest.mark.limit(100)
def test_example_of_a_layer(shared_daemon):
    """Its outputs are equal by slices, by a kernel in its process and by the service."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "mla_prefill.py"), "--tokens", "1000", "--steps", "20"],
        env={**os.environ, "MLACAT_SOCKET": shared_daemon.socket},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=end_with_parent,
    )
    print(finish(process))


HEADS = 128


def bytes_of_call(tokens):
    """Of what call() allocates; torch gives each its own segment, in whole 2 MiB."""
    return sum(-(-tokens * size // (2 * MIB)) * 2 * MIB for size in (HEADS * 128 * 2, 64 * 2, HEADS * 192 * 2))


def call(tokens):
    """A result and its input, both in memory that the daemon has opened."""
    k_nope = torch.ones(tokens, HEADS, 128, dtype=torch.bfloat16, device="cuda")
    k_rope = torch.ones(tokens, 1, 64, dtype=torch.bfloat16, device="cuda")
    k = torch.empty(tokens, HEADS, 192, dtype=torch.bfloat16, device="cuda")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    return k, k_nope, k_rope


def free_bytes():
    return torch.cuda.mem_get_info()[0]  # of the GPU, whoever holds the rest


def await_free(wanted):
    """How long it takes until so many bytes of the GPU are free, for every process."""
    began = time.monotonic()
    while (free := free_bytes()) < wanted:
        took = time.monotonic() - began
        assert took < 5, f"after {took:.1f} s {free // MIB} MiB are free, {wanted // MIB} were before"
        time.sleep(0.002)
    return time.monotonic() - began


# Less than torch takes for one tensor of a call of many tokens, so that one that stays open is seen. The driver hands
# out memory in pieces of 2 MiB, and may have a few more of them for itself the second time.
DRIVERS_OWN = 16 * MIB


def call_and_free(tokens):
    """A call whose memory torch gives back at once."""
    before = free_bytes()
    tensors = call(tokens)
    torch.cuda.synchronize()
    assert free_bytes() < before - bytes_of_call(tokens) // 2
    del tensors
    torch.cuda.empty_cache()


def test_memory_is_back_after_empty_cache(whole_gpu):
    """With no further call: the library sees that the memory was freed, and the daemon lets go of it."""
    first = free_bytes()
    tokens = min(32768, first // 4 // bytes_of_call(1024) * 1024)
    # The driver keeps for good what the first call of a size makes torch load and the driver set up: not the service's.
    # The daemon says that it has closed all, so that `before` has nothing of it.
    call_and_free(tokens)
    assert mlacat.empty_cache(timeout=5)
    give_back()
    before = free_bytes()
    assert before > first - bytes_of_call(tokens) // 10, f"a first call has left {(first - before) // MIB} MiB in use"
    call_and_free(tokens)
    took = await_free(before - DRIVERS_OWN)
    print(f"memory back after {took * 1000:.0f} ms; the first call has left {(first - before) // MIB} MiB in use")
    assert took < BACK_SECONDS, f"memory back after {took * 1000:.0f} ms"


@pytest.mark.limit(90)
def test_fill_free_and_refill_with_other_sizes(whole_gpu):
    """Nine tenths of the GPU, of which the daemon has opened all, three times, with no wait in between."""
    before = free_bytes()
    most = int(0.9 * before)
    for tokens in (32768, 20000, 48000):
        if 3 * bytes_of_call(tokens) > most:
            tokens = tokens * most // bytes_of_call(tokens) // 3
        kept = []
        held = torch.cuda.memory_reserved()
        while (len(kept) + 1) * bytes_of_call(tokens) + held <= most:
            kept.append(call(tokens))
        torch.cuda.synchronize()
        assert free_bytes() < before - most // 2, f"{len(kept)} calls of {tokens} tokens took too little memory"
        for tensors in kept:
            assert bool((tensors[0][:: max(1, tokens // 64)] == 1).all())
        del tensors
        nr = len(kept)
        kept.clear()
        torch.cuda.empty_cache()  # what it takes is not the service's time
        began = time.monotonic()
        assert mlacat.empty_cache(timeout=5)
        took = time.monotonic() - began
        print(f"{nr} calls of {tokens} tokens: {nr * bytes_of_call(tokens) // MIB} MiB back after {took * 1000:.0f} ms")
        assert took < BACK_SECONDS, f"{3 * nr} segments were back after {took * 1000:.0f} ms"


def test_segments_are_registered_once():
    """Tensors that come and go, in segments that torch keeps."""

    def some():
        return call(64)

    some()
    before = mlacat.default_client()._held()["segments"]
    for _ in range(50):
        some()
    torch.cuda.synchronize()
    assert mlacat.default_client()._held()["segments"] <= before + 2


def test_another_process_gets_the_memory(whole_gpu, shared_daemon):
    """It allocates most of what this one has just given back."""
    process = start("taker", shared_daemon)
    await_ready(process)
    before = free_bytes()
    kept = []
    while (len(kept) + 1) * bytes_of_call(16384) <= 0.8 * before:
        kept.append(call(16384))
    torch.cuda.synchronize()
    kept.clear()
    torch.cuda.empty_cache()
    print(finish(process))
    give_back()
