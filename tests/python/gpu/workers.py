# SPDX-License-Identifier: Apache-2.0
"""Runners in processes of their own: workers.py NAME SOCKET. Each ends with status 0 if all was right."""

from __future__ import annotations

import sys
import time

import torch

import mlacat

P, R = 128, 64


def step(tokens: int, heads: int, seed: int) -> None:
    container = torch.randint(-99, 99, (tokens, heads, 2 * P), dtype=torch.int16, device="cuda").view(torch.bfloat16)
    k_rope = torch.randint(-99, 99, (tokens, 1, R), dtype=torch.int16, device="cuda").view(torch.bfloat16)
    k = torch.empty(tokens, heads, P + R, dtype=torch.bfloat16, device="cuda")
    mlacat.concat_mla_k(k, container[..., :P], k_rope)
    got, nope, rope = (tensor.view(torch.int16) for tensor in (k, container, k_rope))
    assert torch.equal(got[..., :P], nope[..., :P]) and torch.equal(got[..., P:], rope.expand(-1, heads, -1)), (
        f"step {seed}: {tokens} tokens, {heads} heads: wrong bits"
    )


def runner() -> None:
    """Steps of sizes that come and go, as in serving; says READY after the first."""
    for seed in range(400):
        if seed == 1:
            print("READY", flush=True)
        step(64 + 511 * seed % 4096, (16, 128, 12, 5)[seed % 4], seed)


def lasting() -> None:
    """Steps until the daemon has been lost and found again; says READY first."""
    lost = 0
    after = 0
    deadline = time.monotonic() + 60
    step(256, 16, 0)
    print("READY", flush=True)
    seed = 0
    while after < 20:
        assert time.monotonic() < deadline, f"lost {lost} times, {after} steps since"
        seed += 1
        try:
            step(256, 16, seed)
            after += lost > 0
        except (mlacat.ServiceLost, mlacat.StreamFailed) as error:
            lost += 1
            assert error.code == 14, error
        except AssertionError:
            # The content of a call's output is undefined when the daemon went under it: the next call must say so.
            try:
                mlacat.default_client().check()
            except (mlacat.ServiceLost, mlacat.StreamFailed):
                lost += 1
            else:
                raise


def expandable() -> None:
    """Tensors that straddle chunks, in segments that grow and shrink."""
    kept = []
    for seed in range(60):
        step(64 + 1531 * seed % 9000, (16, 64)[seed % 2], seed)
        kept.append(torch.empty(7 << 20, dtype=torch.uint8, device="cuda"))
        if seed % 10 == 9:
            kept.clear()
            torch.cuda.empty_cache()
    assert mlacat.default_client()._held()["segments"] <= 256
    large()


def large() -> None:
    """Tensors of more chunks than one registration has, in a growing segment: rows go as several calls."""
    heads = 128
    for tokens in (30_000, 60_000, 30_000, 45_001):
        container = torch.full((tokens, heads, 2 * P), tokens % 251, dtype=torch.bfloat16, device="cuda")
        k_rope = torch.arange(tokens, device="cuda").remainder(199).to(torch.bfloat16)[:, None, None].repeat(1, 1, R)
        k = torch.zeros(tokens, heads, P + R, dtype=torch.bfloat16, device="cuda")
        for _ in range(3):
            mlacat.concat_mla_k(k, container[..., :P], k_rope)
        assert bool((k[..., :P] == tokens % 251).all()), f"{tokens} tokens: the nope part is wrong"
        for head in (0, heads - 1):
            assert torch.equal(k[:, head, P:], k_rope[:, 0]), f"{tokens} tokens: the rope part of head {head} is wrong"
        del container, k_rope, k
    print(f"large: {mlacat.default_client()._held()}")


def taker() -> None:
    """Allocates most of the GPU as soon as another process has given it back; says READY before."""
    torch.zeros(1, device="cuda")
    print("READY", flush=True)
    full = torch.cuda.mem_get_info()[0]
    lowest = full
    began = None
    deadline = time.monotonic() + 60
    while True:
        free, whole = torch.cuda.mem_get_info()
        lowest = min(lowest, free)
        if lowest < 0.5 * full:
            began = began or (time.monotonic() if free > lowest else None)
            if free > 0.9 * full:
                break
        assert time.monotonic() < deadline, f"{free >> 20} of {whole >> 20} MiB are free, {full >> 20} were at first"
        time.sleep(0.002)
    torch.empty(int(0.8 * full), dtype=torch.uint8, device="cuda")
    print(f"got {int(0.8 * full) >> 20} MiB, {time.monotonic() - began:.3f} s after the first of it was back")


def refused() -> None:
    """Memory that its allocator made unshareable: the message says what to do, and a fallback does without."""
    try:
        step(64, 16, 0)
    except mlacat.PreconditionError as error:
        assert "cannot be shared" in str(error), error
        print(error)
    else:
        raise AssertionError("was not refused")
    mlacat.configure(socket=sys.argv[2], fallback="torch")
    step(64, 16, 0)


if __name__ == "__main__":
    mlacat.configure(socket=sys.argv[2], name=sys.argv[1])
    {"runner": runner, "lasting": lasting, "expandable": expandable, "refused": refused,
     "taker": taker}[sys.argv[1]]()
    torch.cuda.synchronize()
    mlacat.default_client().check()
