# SPDX-License-Identifier: Apache-2.0
"""Bit for bit what slice assignment gives, for each shape of the model table, each dtype and each layout."""

from __future__ import annotations

import pytest
import torch

import mlacat
import reference
import shapes

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
TOKENS = (1, 33, 300)


def maker(dtype):
    """Tensors of random bits, NaNs and all."""
    size = dtype.itemsize

    def new(shape):
        bits = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, device="cuda")
        return bits.view(dtype)

    return new


def bits(tensor):
    return tensor.view(torch.uint8 if tensor.dtype.itemsize == 1 else torch.int16)


def check(out, first, second):
    wanted = reference.expected(bits(out), bits(first), bits(second), torch.empty_like)
    assert torch.equal(bits(out), wanted)


@pytest.mark.parametrize("layout", shapes.K_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize("shape", shapes.K_SHAPES, ids=lambda shape: "h{}-{}-{}-v{}".format(*shape))
def test_k(shape, dtype, layout):
    new = maker(DTYPES[dtype])
    for tokens in TOKENS:
        k, k_nope, k_rope = reference.k_arguments(new, tokens, shape, layout)
        assert mlacat.concat_mla_k(k, k_nope, k_rope) is None
        check(k, k_nope, k_rope)
        fresh = torch.empty_like(k)
        mlacat.concat_mla_k(k=fresh, k_nope=k_nope, k_pe=k_rope)
        check(fresh, k_nope, k_rope)


@pytest.mark.parametrize("layout", shapes.Q_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize("shape", shapes.Q_SHAPES, ids=lambda shape: "h{}-{}-{}-p{}".format(*shape))
def test_q(shape, dtype, layout):
    new = maker(DTYPES[dtype])
    for tokens in TOKENS:
        out, a, b = reference.q_arguments(new, tokens, shape, layout)
        check(mlacat.concat_mla_absorb_q(a, b), a, b)
        assert mlacat.concat_mla_absorb_q(a, b, out) is out
        check(out, a, b)
        mlacat.concat_mla_q(b, a, out)
        check(out, b, a)


def test_prefill_of_a_long_prompt():
    new = maker(torch.bfloat16)
    k, k_nope, k_rope = reference.k_arguments(new, 32768, shapes.KShape(128, 128, 64, 128), "halves")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    check(k, k_nope, k_rope)


def test_zero_tokens():
    k, k_nope, k_rope = reference.k_arguments(maker(torch.bfloat16), 0, shapes.K_SHAPES[0], "halves")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    assert mlacat.concat_mla_absorb_q(k_nope, k_nope).shape == (0, k_nope.shape[1], 2 * k_nope.shape[2])


def test_any_leading_dimensions_of_q():
    new = maker(torch.bfloat16)
    for lead in ((), (5,), (2, 3), (2, 3, 4)):
        a, b = new((*lead, 512)), new((*lead, 64))
        assert torch.equal(bits(mlacat.concat_mla_absorb_q(a, b)), torch.cat([bits(a), bits(b)], -1))


def test_odd_alignment():
    """Element strides that are no multiple of a vector, and addresses that are not aligned."""
    new = maker(torch.bfloat16)
    k = new((5, 3 * 193 + 1))[:, 1:].unflatten(1, (3, 193))[..., :192]
    k_nope, k_rope = new((5, 3, 131))[..., 3:], new((5, 1, 65))[..., 1:]
    mlacat.concat_mla_k(k, k_nope, k_rope)
    check(k, k_nope, k_rope)


def test_what_is_wrong_is_refused():
    new = maker(torch.bfloat16)
    k, k_nope, k_rope = reference.k_arguments(new, 4, shapes.K_SHAPES[0], "halves")
    for arguments in ((k, k_nope, k_rope.float()), (k, k_nope.cpu(), k_rope), (k, k_nope[:2], k_rope)):
        with pytest.raises(RuntimeError) as caught:
            mlacat.concat_mla_k(*arguments)
        assert caught.value.code == 3


def test_opcheck():
    new = maker(torch.float16)
    k, k_nope, k_rope = reference.k_arguments(new, 4, shapes.K_SHAPES[0], "halves")
    k, k_nope, k_rope = (torch.nan_to_num(tensor) for tensor in (k, k_nope, k_rope))
    assert mlacat.register_torch_ops()
    ops = torch.ops.mlacat
    torch.library.opcheck(ops.concat_mla_k, (k, k_nope, k_rope))
    torch.library.opcheck(ops.concat_mla_absorb_q, (k_nope, k_nope))
    torch.library.opcheck(ops.concat_mla_q, (k_nope, k_nope, torch.cat([k_nope, k_nope], -1)))


def test_compiled_without_a_break():
    a, b = torch.randn(7, 3, 512, device="cuda"), torch.randn(7, 3, 64, device="cuda")

    def step(a, b):
        return mlacat.concat_mla_absorb_q(a * 2, b) + 1

    assert torch.equal(torch.compile(step, backend="aot_eager", fullgraph=True)(a, b), step(a, b))
