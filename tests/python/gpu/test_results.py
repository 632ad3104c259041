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


def check(out, first, second, what=""):
    got, wanted = bits(out), reference.expected(bits(out), bits(first), bits(second), torch.empty_like)
    if not torch.equal(got, wanted):
        wrong = (got != wanted).nonzero()
        at = tuple(wrong[0].tolist())
        pytest.fail(
            f"{what} out {list(out.shape)} of strides {out.stride()}, inputs of strides {first.stride()} and "
            f"{second.stride()}: {len(wrong)} elements of {got.numel()} are wrong, the first one at {at}: "
            f"{got[at].item():#x} in place of {wanted[at].item():#x}, the last one at {wrong[-1].tolist()}"
        )


@pytest.mark.parametrize("layout", shapes.K_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize("shape", shapes.K_SHAPES, ids=lambda shape: "h{}-{}-{}-v{}".format(*shape))
def test_k(shape, dtype, layout):
    new = maker(DTYPES[dtype])
    for tokens in TOKENS:
        k, k_nope, k_rope = reference.k_arguments(new, tokens, shape, layout)
        assert mlacat.concat_mla_k(k, k_nope, k_rope) is None
        check(k, k_nope, k_rope, "by position:")
        fresh = torch.empty_like(k)
        mlacat.concat_mla_k(k=fresh, k_nope=k_nope, k_pe=k_rope)
        check(fresh, k_nope, k_rope, "by keyword:")


@pytest.mark.parametrize("layout", shapes.Q_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize("shape", shapes.Q_SHAPES, ids=lambda shape: "h{}-{}-{}-p{}".format(*shape))
def test_q(shape, dtype, layout):
    new = maker(DTYPES[dtype])
    for tokens in TOKENS:
        out, a, b = reference.q_arguments(new, tokens, shape, layout)
        check(mlacat.concat_mla_absorb_q(a, b), a, b, "two arguments:")
        assert mlacat.concat_mla_absorb_q(a, b, out) is out
        check(out, a, b, "three arguments:")
        mlacat.concat_mla_q(b, a, out)
        check(out, b, a, "concat_mla_q:")


def test_prefill_of_a_long_prompt(whole_gpu):
    """32768 tokens, or as many as a third of the free memory allows: what is compared takes as much again, twice."""
    shape = shapes.KShape(128, 128, 64, 128)
    a_token = shape.heads * (shape.nope + shape.v + shape.nope + shape.rope) * 2
    tokens = min(32768, torch.cuda.mem_get_info()[0] // 3 // a_token)
    k, k_nope, k_rope = reference.k_arguments(maker(torch.bfloat16), tokens, shape, "halves")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    for rows in range(0, tokens, 4096):
        part = slice(rows, rows + 4096)
        check(k[part], k_nope[part], k_rope[part], f"rows from {rows}:")


def test_zero_tokens():
    k, k_nope, k_rope = reference.k_arguments(maker(torch.bfloat16), 0, shapes.K_SHAPES[0], "halves")
    mlacat.concat_mla_k(k, k_nope, k_rope)
    assert mlacat.concat_mla_absorb_q(k_nope, k_nope).shape == (0, k_nope.shape[1], 2 * k_nope.shape[2])


def test_any_leading_dimensions_of_q():
    new = maker(torch.bfloat16)
    for lead in ((), (5,), (2, 3), (2, 3, 4)):
        a, b = new((*lead, 512)), new((*lead, 64))
        assert torch.equal(bits(mlacat.concat_mla_absorb_q(a, b)), torch.cat([bits(a), bits(b)], -1)), lead


def test_halves_of_one_tensor_give_a_new_one():
    """Also where they abut, and could be seen as the result without a copy."""
    fused = maker(torch.bfloat16)((7, 16, 576))
    q = mlacat.concat_mla_absorb_q(fused[..., :512], fused[..., 512:])
    assert q.data_ptr() != fused.data_ptr()
    assert torch.equal(bits(q), bits(fused))


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
        assert caught.value.code == 3, caught.value


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


def test_dlpack_of_another_library():
    """An array that only has __dlpack__, on the stream that is given."""

    class Array:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **keywords):
            return self.tensor.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    new = maker(torch.float16)
    k, k_nope, k_rope = reference.k_arguments(new, 100, shapes.K_SHAPES[0], "blocks")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    mlacat.concat_mla_k(Array(k), Array(k_nope), Array(k_rope), stream=stream.cuda_stream)
    stream.synchronize()
    check(k, k_nope, k_rope)
