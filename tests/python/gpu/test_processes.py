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

WORKERS = str(pathlib.Path(__file__).with_name("workers.py"))


def start(name, daemon, **env):
    return subprocess.Popen(
        [sys.executable, WORKERS, name, daemon.socket],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return output


def test_two_runners(shared_daemon):
    for process in [start("runner", shared_daemon) for _ in range(2)]:
        finish(process)


def test_daemon_restarts_under_a_runner(daemon):
    process = start("lasting", daemon)
    assert process.stdout.readline().strip() == "READY", finish(process)
    daemon.restart()
    finish(process)


def test_runner_that_is_killed_leaves_the_others_alone(shared_daemon):
    victim, other = start("runner", shared_daemon), start("runner", shared_daemon)
    time.sleep(4)  # somewhere in its steps; any point will do
    victim.kill()
    victim.communicate()
    finish(other)


def test_expandable_segments(shared_daemon):
    finish(
        start(
            "expandable",
            shared_daemon,
            PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
            PYTORCH_ALLOC_CONF="expandable_segments:True",
            TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC="1",
        )
    )


@pytest.mark.parametrize(
    "conf", [{"conf": "expandable_segments:True", "ipc": "0"}, {"conf": "backend:cudaMallocAsync", "ipc": "1"}]
)
def test_memory_that_cannot_be_shared(shared_daemon, conf):
    process = start(
        "refused",
        shared_daemon,
        PYTORCH_CUDA_ALLOC_CONF=conf["conf"],
        PYTORCH_ALLOC_CONF=conf["conf"],
        TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC=conf["ipc"],
    )
    print(finish(process))


def call(tokens, heads=128):
    k_nope = torch.ones(tokens, heads, 128, dtype=torch.bfloat16, device="cuda")
    k_rope = torch.ones(tokens, 1, 64, dtype=torch.bfloat16, device="cuda")
    k = torch.empty(tokens, heads, 192, dtype=torch.bfloat16, device="cuda")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    return k


def free_bytes():
    return torch.cuda.mem_get_info()[0]  # of the GPU, whoever holds the rest


def test_memory_is_back_after_empty_cache():
    """With no further call: the library sees that the memory was freed, and the daemon lets go of it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    time.sleep(0.5)
    before = free_bytes()
    k = call(32768)
    torch.cuda.synchronize()
    assert free_bytes() < before - (1 << 30)
    del k
    torch.cuda.empty_cache()
    began = time.monotonic()
    while free_bytes() < before - (64 << 20):
        assert time.monotonic() - began < 2.0, "the memory did not come back"
        time.sleep(0.005)
    took = time.monotonic() - began
    print(f"memory back after {took * 1000:.0f} ms")
    assert took < 0.3


def test_fill_free_and_refill_with_other_sizes():
    torch.cuda.empty_cache()
    time.sleep(0.5)
    most = int(0.9 * free_bytes())
    for tokens in (32768, 20000, 48000):
        size = tokens * 128 * (128 + 192) * 2
        kept = []
        for _ in range(most // size):
            kept.append(call(tokens))
            kept.append(torch.empty(tokens * 128 * 128, dtype=torch.bfloat16, device="cuda"))
            if torch.cuda.memory_reserved() > most:
                break
        torch.cuda.synchronize()
        assert torch.all(kept[0] == 1)
        kept.clear()
        torch.cuda.empty_cache()
        time.sleep(0.35)


def test_segments_are_registered_once():
    call(64)
    before = mlacat.default_client()._held()["segments"]
    for _ in range(50):
        call(64)
    assert mlacat.default_client()._held()["segments"] <= before + 2
