# SPDX-License-Identifier: Apache-2.0
"""What is refused, and how: nothing is written, and the message names the argument and both values."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import mlacat
from mlacat import _mlacat


@pytest.fixture
def trio(client):
    return client.empty((3, 4, 192)), client.empty((3, 4, 128)), client.empty((3, 1, 64))


def refuse(call, error, *words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    return caught.value


def test_error_classes_have_codes(client, trio):
    k, k_nope, k_rope = trio
    error = refuse(lambda: client.concat_mla_k(k, k_nope, k_nope), mlacat.ArgumentError, "k_rope", "[3, 4, 128]")
    assert isinstance(error, RuntimeError) and isinstance(error, ValueError)
    assert (error.code, error.status, error.scope) == (3, "INVALID_ARGUMENT", "CALL")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code) == (type(error), str(error), 3)
    assert issubclass(mlacat.ServiceLost, RuntimeError) and not issubclass(mlacat.ServiceLost, mlacat.ArgumentError)


def test_dtypes(client, trio):
    k, k_nope, k_rope = trio
    error = refuse(lambda: client.concat_mla_k(k, k_nope, client.empty((3, 1, 64), "fp16")), mlacat.ArgumentError,
                   "k_rope", "fp16", "bf16")
    assert isinstance(error, TypeError)
    refuse(lambda: client.concat_mla_k(client.empty((3, 4, 192), np.int64), k_nope, k_rope), TypeError, "k", "int64")
    refuse(lambda: client.concat_mla_k([1], k_nope, k_rope), TypeError, "list")
    swapped = client.empty((3, 1, 64), "fp32").view(">f4")
    refuse(lambda: client.concat_mla_k(k, k_nope, swapped), TypeError, "k_rope", "byte order")


def test_shapes(client, trio):
    k, k_nope, k_rope = trio
    refuse(lambda: client.concat_mla_k(k, k_nope[:2], k_rope), ValueError, "k_nope", "[2, 4, 128]", "[3, 4, 192]")
    refuse(lambda: client.concat_mla_k(k, k_nope[..., :64], k_rope), ValueError, "64 + 64")
    refuse(lambda: client.concat_mla_k(k, k_nope, k_rope[0, 0]), ValueError, "number of dimensions")
    refuse(lambda: client.concat_mla_k(k_rope[0, 0], k_rope[0, 0], k_rope[0, 0]), ValueError, "at least 2")
    refuse(lambda: client.concat_mla_absorb_q(k_nope, k_rope), ValueError, "b has shape")
    refuse(lambda: client.concat_mla_q(k_nope, k_nope, k), ValueError, "ql_nope", "q_out")


def test_outputs_that_cannot_be_made(client):
    for wrong in ([1], 5, None):
        refuse(lambda: client.concat_mla_absorb_q(wrong, client.empty((2, 8))), mlacat.ArgumentTypeError, "a is a",
               type(wrong).__name__)
    a = client.empty((2, 8))
    refuse(lambda: client.concat_mla_absorb_q(a, [1]), mlacat.ArgumentTypeError, "b is a", "list")
    refuse(lambda: client.concat_mla_absorb_q(a[0, 0], a), mlacat.ArgumentError, "a has 0 dimensions")


def test_shapes_of_empty(client):
    for wrong in ((-1, 4), (-1, -4), -3):
        refuse(lambda: client.empty(wrong), mlacat.ArgumentError, "shape", "-")
    assert client.empty(np.int64(5)).shape == (5,) and client.empty((np.int32(2), 3)).shape == (2, 3)


def test_strides(client, trio):
    k, k_nope, k_rope = trio
    refuse(lambda: client.concat_mla_k(k[..., ::2], k_nope[..., :64], k_rope[..., :32]), ValueError, "k has stride 2")
    rows = np.lib.stride_tricks.as_strided(k, (3, 4, 192), (0, 384, 2))
    refuse(lambda: client.concat_mla_k(rows, k_nope, k_rope), ValueError, "k has stride 0")
    bytes_ = client.empty(64, "uint8")
    odd = np.lib.stride_tricks.as_strided(bytes_[:32].view(np.uint16), (3, 4, 2), (9, 4, 2))
    refuse(lambda: client.concat_mla_absorb_q(odd, odd), ValueError, "9 bytes")
    wide = client.empty((2, 3, 4, 4, 128))[:, :2, :3, :2]
    refuse(lambda: client.concat_mla_absorb_q(wide, wide), ValueError, "leading dimensions", "without a copy")


def test_read_only_output(client, trio):
    k, k_nope, k_rope = trio
    k.flags.writeable = False
    refuse(lambda: client.concat_mla_k(k, k_nope, k_rope), ValueError, "k is read-only")
    k_nope.flags.writeable = False
    client.concat_mla_k(client.empty(k.shape), k_nope, k_rope)


def test_memory_of_others(client, trio):
    k, k_nope, k_rope = trio
    refuse(lambda: client.concat_mla_k(k, np.zeros((3, 4, 128), k.dtype), k_rope), mlacat.PreconditionError, "k_nope",
           "Client.empty()")
    past = np.lib.stride_tricks.as_strided(k_rope, (3, 1, 64), (1 << 40, 128, 2))
    refuse(lambda: client.concat_mla_k(k, k_nope, past), mlacat.PreconditionError, "k_rope")


def test_output_that_overlaps_an_input_is_refused(client, trio):
    k, _, k_rope = trio
    refuse(lambda: client.concat_mla_k(k, k[:, ::-1, 64:], k_rope), mlacat.ArgumentError, "k")


def test_rules_of_the_extension(client, trio):
    with pytest.raises(ValueError):
        client._run(9, *trio)
    with pytest.raises(TypeError):
        client._run(0, *trio[:2])
    _mlacat.check_arguments(0, *trio)


def test_supports(client):
    assert client.supports("concat_mla_k", "bf16", "host") and client.supports("concat_mla_q")
    assert client.supports("concat_mla_absorb_q", np.float16)
    assert not client.supports("concat_mla_v")
    assert not client.supports("concat_mla_k", np.int64)
    assert not client.supports("concat_mla_k", device="cuda")


def test_options():
    with pytest.raises(mlacat.ArgumentError):
        mlacat.Client("/nowhere", fallback="maybe")
    with pytest.raises(mlacat.ServiceLost) as caught:
        mlacat.Client("/nowhere/socket")
    assert caught.value.code == 14 and "/nowhere/socket" in str(caught.value)
