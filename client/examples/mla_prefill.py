# SPDX-License-Identifier: Apache-2.0
"""A prefill attention layer of DeepSeek-V2-Lite's dimensions with random weights, in PyTorch.

Its keys are put together by two slice assignments, by a kernel in this process (with Triton, which comes with PyTorch
for CUDA) and by the service. The outputs are compared bit for bit, and the time of a step is shown for each:

    python mla_prefill.py [--tokens 4096] [--steps 50]

Needs PyTorch, a CUDA GPU, and a daemon that serves it (mlacatd --device auto; MLACAT_SOCKET if it is not at its usual
place). On a machine without a GPU, --cpu runs the same in process: numbers of the service are then those of a fallback.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from torch import nn

import mlacat

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

HIDDEN, HEADS, NOPE, ROPE, V, LATENT = 2048, 16, 128, 64, 128, 512


def concat_in_process(k: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor) -> None:
    k[..., :NOPE] = k_nope
    k[..., NOPE:] = k_rope


if triton is not None:

    @triton.jit
    def concat_row(k, k_nope, k_rope, heads, nope_n, nope_h, rope_n, P: tl.constexpr, R: tl.constexpr):
        """One row of k: strides nope_n and nope_h of k_nope, rope_n of k_rope, in elements."""
        row = tl.program_id(0).to(tl.int64)
        n, h = row // heads, row % heads
        p, r = tl.arange(0, P), tl.arange(0, R)
        tl.store(k + row * (P + R) + p, tl.load(k_nope + n * nope_n + h * nope_h + p))
        tl.store(k + row * (P + R) + P + r, tl.load(k_rope + n * rope_n + r))


def concat_by_kernel(k: torch.Tensor, k_nope: torch.Tensor, k_rope: torch.Tensor) -> None:
    strides = (*k_nope.stride()[:2], k_rope.stride(0))
    concat_row[(k.shape[0] * HEADS,)](k, k_nope, k_rope, HEADS, *strides, P=NOPE, R=ROPE, num_warps=1)


class MlaPrefill(nn.Module):
    """Multi-head latent attention over a whole prompt: keys and values come out of a latent row of 512, and all heads
    share the rotary part of the key."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * (NOPE + ROPE), bias=False)
        self.kv_a_proj = nn.Linear(HIDDEN, LATENT + ROPE, bias=False)
        self.kv_norm = nn.RMSNorm(LATENT)
        self.kv_b_proj = nn.Linear(LATENT, HEADS * (NOPE + V), bias=False)
        self.o_proj = nn.Linear(HEADS * V, HIDDEN, bias=False)
        frequencies = 1.0 / 10000 ** (torch.arange(0, ROPE, 2).float() / ROPE)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(x.shape[0], device=x.device).float(), self.frequencies)
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)

    def forward(self, hidden: torch.Tensor, concat_mla_k) -> torch.Tensor:
        tokens = hidden.shape[0]
        q = self.q_proj(hidden).view(tokens, HEADS, NOPE + ROPE)
        q = torch.cat([q[..., :NOPE], self.rotate(q[..., NOPE:])], -1)
        latent, k_rope = self.kv_a_proj(hidden).split([LATENT, ROPE], -1)
        k_rope = self.rotate(k_rope[:, None])  # [N, 1, 64]
        kv = self.kv_b_proj(self.kv_norm(latent)).view(tokens, HEADS, NOPE + V)
        k_nope, v = kv.split([NOPE, V], -1)  # halves of one row: strides [H*256, 256, 1]
        k = kv.new_empty(tokens, HEADS, NOPE + ROPE)
        concat_mla_k(k, k_nope, k_rope)
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
        return self.o_proj(attended[0].transpose(0, 1).reshape(tokens, HEADS * V))


def step_ms(layer: MlaPrefill, hidden: torch.Tensor, concat, steps: int) -> float:
    synchronize = torch.cuda.synchronize if hidden.is_cuda else lambda: None
    for _ in range(3):
        layer(hidden, concat)
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        layer(hidden, concat)
    synchronize()
    return (time.perf_counter() - began) / steps * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.cpu else "cuda"
    if options.cpu:
        mlacat.configure(fallback="torch")
    torch.manual_seed(0)
    with torch.inference_mode():
        layer = MlaPrefill().to(device, torch.bfloat16)
        layer.frequencies = layer.frequencies.float()
        hidden = torch.randn(options.tokens, HIDDEN, device=device, dtype=torch.bfloat16)
        ways = {"slice assignment in process": concat_in_process}
        if triton is not None and hidden.is_cuda:
            ways["kernel in process"] = concat_by_kernel
        ways["the service"] = mlacat.concat_mla_k
        outputs = [layer(hidden, concat).view(torch.int16) for concat in ways.values()]
        same = all(torch.equal(outputs[0], output) for output in outputs[1:])
        for name, concat in ways.items():
            print(f"{name:<30}{step_ms(layer, hidden, concat, options.steps):9.3f} ms a step")
    print("outputs are equal, bit for bit" if same else "OUTPUTS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
