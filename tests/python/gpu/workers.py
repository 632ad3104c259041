# SPDX-License-Identifier: Apache-2.0
"""Runners in processes of their own: workers.py NAME SOCKET. Each ends with status 0 if all was right."""

from __future__ import annotations

import sys
import time

import torch

import mlacat

P, R = 128, 64


def step(tokens: int, heads: int, seed: int) -> None:
    container = torch.randint(-99, 99, (tokens, heads, 2 * P), device="cuda").to(torch.bfloat16) + seed % 7
    k_rope = torch.randint(-99, 99, (tokens, 1, R), device="cuda").to(torch.bfloat16)
    k = torch.empty(tokens, heads, P + R, dtype=torch.bfloat16, device="cuda")
    mlacat.concat_mla_k(k, container[..., :P], k_rope)
    assert torch.equal(k[..., :P], container[..., :P]) and torch.equal(k[..., P:], k_rope.expand(-1, heads, -1))


def runner() -> None:
    """Steps of sizes that come and go, as in serving."""
    for seed in range(400):
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
    {"runner": runner, "lasting": lasting, "expandable": expandable, "refused": refused}[sys.argv[1]]()
    torch.cuda.synchronize()
    mlacat.default_client().check()
