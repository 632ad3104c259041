# SPDX-License-Identifier: Apache-2.0
"""Arguments in callers' layouts and the result by slice assignment, for numpy arrays and torch tensors alike.

`new(shape)` makes an array of integers of the element's size, filled with random bits; all that is compared are bits.
"""

from __future__ import annotations

from typing import Any, Callable

import shapes

New = Callable[[tuple[int, ...]], Any]


def k_arguments(new: New, tokens: int, shape: shapes.KShape, layout: str) -> tuple[Any, Any, Any]:
    heads, nope, rope, v = shape
    k = new((tokens, heads, nope + rope))
    if layout in shapes.ROW:
        k_nope = new((tokens, heads, nope + v))[..., :nope]
        k_rope = new((tokens, shapes.ROW[layout] + rope))[:, None, shapes.ROW[layout] :]
    else:
        k_nope = new((tokens, heads * (nope + v)))[:, : heads * nope].reshape(tokens, heads, nope)
        k_rope = new((tokens, rope)) if layout == "flat" else new((tokens, 1, rope))
    return k, k_nope, k_rope


def q_arguments(new: New, tokens: int, shape: shapes.QShape, layout: str) -> tuple[Any, Any, Any]:
    heads, latent, rope, nope = shape
    out = new((tokens, heads + (8 if layout == "padded" else 0), latent + rope))[:, :heads]
    if layout == "head_major":
        a = new((heads, tokens, latent)).swapaxes(0, 1)
    else:
        a = new((tokens, heads, latent))
    b = new((tokens, heads, nope + rope))[..., nope:] if layout != "dense" else new((tokens, heads, rope))
    return out, a, b


def expected(out: Any, first: Any, second: Any, empty_like: Callable[[Any], Any]) -> Any:
    result = empty_like(out)
    width = first.shape[-1]
    if len(second.shape) < len(out.shape):
        second = second[:, None, :]
    result[..., :width] = first
    result[..., width:] = second
    return result
