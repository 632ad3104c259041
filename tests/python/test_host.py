# SPDX-License-Identifier: Apache-2.0
"""Results, bit for bit, over the shapes and layouts that callers have, with numpy arrays on the host device."""

from __future__ import annotations

import numpy as np
import pytest

import mlacat
import reference
import shapes

TOKENS = (1, 7)


def maker(client, dtype, seed=1):
    random = np.random.default_rng(seed)

    def new(shape):
        array = client.empty(shape, dtype)
        bits = array.view(np.dtype(f"u{array.dtype.itemsize}"))
        bits[...] = random.integers(0, np.iinfo(bits.dtype).max, shape, bits.dtype, endpoint=True)
        return array

    return new


def same(result, first, second):
    bits = np.dtype(f"u{result.dtype.itemsize}")
    wanted = reference.expected(result.view(bits), first.view(bits), second.view(bits), np.empty_like)
    return np.array_equal(result.view(bits), wanted)


@pytest.mark.parametrize("layout", shapes.K_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
def test_k_of_every_model(client, dtype, layout):
    new = maker(client, dtype)
    for shape in shapes.K_SHAPES:
        for tokens in TOKENS:
            k, k_nope, k_rope = reference.k_arguments(new, tokens, shape, layout)
            assert client.concat_mla_k(k, k_nope, k_rope) is None
            assert same(k, k_nope, k_rope), (shape, tokens)


@pytest.mark.parametrize("layout", shapes.Q_LAYOUTS)
@pytest.mark.parametrize("dtype", shapes.DTYPES)
def test_q_of_every_model(client, dtype, layout):
    new = maker(client, dtype)
    for shape in shapes.Q_SHAPES:
        out, a, b = reference.q_arguments(new, 5, shape, layout)
        assert client.concat_mla_absorb_q(a, b, out) is out
        assert same(out, a, b), shape
        client.concat_mla_q(b, a, out)
        assert same(out, b, a), shape
        fresh = client.concat_mla_absorb_q(a, b)
        assert fresh is not out and same(fresh, a, b), shape


def test_fp32_and_plain_numpy_types(client):
    for dtype in ("fp32", np.float16, np.uint16, "uint8"):
        k, k_nope, k_rope = reference.k_arguments(maker(client, dtype), 3, shapes.K_SHAPES[0], "halves")
        client.concat_mla_k(k, k_nope, k_rope)
        assert same(k, k_nope, k_rope)


def test_keywords(client):
    new = maker(client, "bf16")
    k, k_nope, k_rope = reference.k_arguments(new, 4, shapes.K_SHAPES[3], "halves")
    client.concat_mla_k(k=k, k_nope=k_nope, k_rope=k_rope)
    assert same(k, k_nope, k_rope)
    client.concat_mla_k(k, k_nope, k_pe=new(k_rope.shape))
    assert not same(k, k_nope, k_rope)
    for wrong in ({}, {"k_rope": k_rope, "k_pe": k_rope}):
        with pytest.raises(mlacat.ArgumentTypeError):
            client.concat_mla_k(k, k_nope, **wrong)


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 3, 4), (1, 3, 1, 4)])
def test_leading_dimensions_of_q(client, lead):
    new = maker(client, "bf16")
    a, b = new((*lead, 64)), new((*lead, 96))[..., 32:]
    result = client.concat_mla_absorb_q(a, b)
    assert result.shape == (*lead, 128)
    assert same(result, a, b)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 3)])
def test_leading_dimensions_of_k(client, lead):
    new = maker(client, "bf16")
    k, k_nope = new((*lead, 4, 96)), new((*lead, 4, 128))[..., :64]
    for k_rope in (new((*lead, 1, 32)), new((*lead, 32))):
        client.concat_mla_k(k, k_nope, k_rope)
        bits = np.uint16
        wanted = np.empty_like(k.view(bits))
        wanted[..., :64] = k_nope.view(bits)
        wanted[..., 64:] = k_rope.view(bits).reshape(*lead, 1, 32)
        assert np.array_equal(k.view(bits), wanted)


def test_negative_strides_and_broadcast_inputs(client):
    new = maker(client, "uint16")
    out, a, b = new((6, 4, 24)), new((6, 4, 16))[::-1], np.broadcast_to(new((1, 4, 8)), (6, 4, 8))
    client.concat_mla_absorb_q(a, b, out)
    assert same(out, a, b)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_without_elements(client, shape):
    k, k_nope, k_rope = client.empty((*shape, 192)), client.empty((*shape, 128)), client.empty((shape[0], 1, 64))
    client.concat_mla_k(k, k_nope, k_rope)
    assert client.concat_mla_absorb_q(k_nope, k_nope).shape == (*shape, 256)


@pytest.mark.parametrize("extent", [0, 2])
def test_without_elements_however_they_lie(client, extent):
    """Of leading dimensions that cannot be seen as two: that does not matter where they hold nothing."""
    shape = (4, extent, 3, 5)
    out, a, b = (client.empty((*shape, width), "uint16").transpose(2, 1, 0, 3, 4) for width in (24, 16, 8))
    if extent == 0:
        client.concat_mla_absorb_q(a, b, out)
    else:
        with pytest.raises(mlacat.ArgumentError, match="cannot be seen as 2"):
            client.concat_mla_absorb_q(a, b, out)


def test_rope_of_no_width(client):
    new = maker(client, "bf16")
    k, k_nope = new((3, 4, 64)), new((3, 4, 64))
    client.concat_mla_k(k, k_nope, client.empty((3, 1, 0)))
    assert np.array_equal(k.view(np.uint16), k_nope.view(np.uint16))
