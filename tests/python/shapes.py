# SPDX-License-Identifier: Apache-2.0
"""The shapes that models call with: one row a model, and what follows from it for each tensor-parallel rank."""

from __future__ import annotations

from typing import Iterator, NamedTuple


class Model(NamedTuple):
    name: str
    heads: int
    ranks: tuple[int, ...]  # attention tensor-parallel sizes
    nope: int
    rope: int
    v: int
    latent: int


MODELS = (
    Model("DeepSeek V2/V3/R1/V3.2, Mistral Large 3", 128, (1, 2, 4, 8, 16), 128, 64, 128, 512),
    Model("DeepSeek V2-Lite, Moonlight", 16, (1, 2, 4, 8, 16), 128, 64, 128, 512),
    Model("Kimi K2, Sarvam 105B, LongCat-Flash", 64, (1, 2, 4, 8, 16), 128, 64, 128, 512),
    Model("Kimi K3", 96, (1, 2, 4, 8, 16), 128, 64, 128, 512),
    Model("Kimi-Linear 48B", 32, (1, 2, 4, 8, 16), 128, 64, 128, 512),
    Model("Mistral Small 4", 32, (1, 2, 4, 8, 16), 64, 64, 128, 256),
    Model("GLM-5", 64, (1, 2, 4, 8, 16), 192, 64, 256, 512),
    Model("GLM-4.7-Flash", 20, (1, 2, 4), 192, 64, 256, 512),
    Model("MiniCPM3-4B", 40, (1, 2, 4, 8), 64, 32, 64, 256),
)
DTYPES = ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2")


class KShape(NamedTuple):
    heads: int
    nope: int
    rope: int
    v: int


class QShape(NamedTuple):
    heads: int
    latent: int
    rope: int
    nope: int


def _per_rank() -> Iterator[tuple[Model, int]]:
    for model in MODELS:
        for ranks in model.ranks:
            yield model, model.heads // ranks


K_SHAPES = sorted({KShape(heads, model.nope, model.rope, model.v) for model, heads in _per_rank()})
Q_SHAPES = sorted({QShape(heads, model.latent, model.rope, model.nope) for model, heads in _per_rank()})

# How callers' tensors lie in memory.
K_LAYOUTS = (
    "halves",  # k_nope is one half of kv_b_proj's output [N, H, P+V], k_rope the tail of a fused q_a/kv_a row
    "latent",  # the same without q_a in the row (models whose q_lora_rank is None)
    "blocks",  # k_nope is a block [N, H*P] beside v's, k_rope [M, 1, R] gathered
    "flat",  # k_rope is [N, R]
)
Q_LAYOUTS = (
    "head_major",  # a is a batched product [H, N, A] transposed, b the tail of q [N, H, P+R]
    "dense",
    "padded",  # the output is a slice of a buffer with more heads
)
# Elements before the rope part in its row.
ROW = {"halves": 1536 + 512, "latent": 512}
