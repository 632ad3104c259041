# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries, on memory of the client."""

from __future__ import annotations

import numpy as np
import pytest

import dlpack
import mlacat

SHAPES = (2, 3, 12), (2, 3, 8), (2, 1, 4)
FILL = 0, 5, 6


@pytest.fixture
def memory(client):
    arrays = [client.empty(shape, "uint16") for shape in SHAPES]
    for array, value in zip(arrays, FILL):
        array[...] = value
    return arrays


def wrap(memory, make=dlpack.Array, **keywords):
    return [make(array.ctypes.data, array.shape, **keywords) for array in memory]


def is_right(memory):
    return bool((memory[0][..., :8] == 5).all() and (memory[0][..., 8:] == 6).all())


@pytest.mark.parametrize("version", [0, 1])
def test_capsules_are_read_and_given_back(client, memory, version):
    arrays = wrap(memory, version=version)
    client.concat_mla_k(*arrays)
    assert is_right(memory)
    assert [array.lent for array in arrays] == [0, 0, 0]
    assert [array.streams for array in arrays] == [[None]] * 3


@pytest.mark.parametrize("version", [0, 1])
def test_capsules_are_given_back_after_an_error(client, memory, version):
    arrays = wrap(memory, version=version)
    with pytest.raises(mlacat.ArgumentError):
        client.concat_mla_k(arrays[0], arrays[1], arrays[1])
    with pytest.raises(mlacat.ArgumentTypeError):
        client.concat_mla_k(arrays[0], arrays[1], 5)
    assert [array.lent for array in arrays] == [0, 0, 0]


def test_strides_of_a_capsule(client, memory):
    out = dlpack.Array(memory[0].ctypes.data, (2, 3, 12), (36, 12, 1))
    last_first = dlpack.Array(memory[1].ctypes.data + 2 * 24, (2, 3, 8), (-24, 8, 1))
    memory[1][0] = 7
    client.concat_mla_k(out, last_first, wrap(memory)[2])
    assert (memory[0][0, :, :8] == 5).all() and (memory[0][1, :, :8] == 7).all()


@pytest.mark.parametrize("flags, word", [(1, "read-only"), (2, "copy")])
def test_output_that_cannot_be_written(client, memory, flags, word):
    arrays = wrap(memory, version=1)
    arrays[0].flags = flags
    with pytest.raises(mlacat.ArgumentError, match=word):
        client.concat_mla_k(*arrays)
    assert arrays[0].lent == 0


def test_what_is_not_understood(client, memory):
    for wrong in (dict(version=2), dict(dtype="int32"), dict(device=(7, 0))):
        arrays = wrap(memory, **wrong)
        with pytest.raises(TypeError):
            client.concat_mla_k(*arrays)
    many = dlpack.Array(memory[0].ctypes.data, (1,) * 9)
    with pytest.raises(mlacat.ArgumentError, match="9 dimensions"):
        client.concat_mla_absorb_q(many, many, many)


def test_shapes_with_the_longest_numbers(client, memory):
    """The message has room for all of it."""
    far = dlpack.Array(memory[0].ctypes.data, ((1 << 62) + 1,) * 8)
    with pytest.raises(mlacat.ArgumentError) as caught:
        client.concat_mla_absorb_q(wrap(memory)[1], far, wrap(memory)[0])
    assert str([(1 << 62) + 1] * 8) in str(caught.value)


def test_output_is_not_made_for_them(client, memory):
    array = wrap(memory)[0]
    with pytest.raises(mlacat.ArgumentTypeError, match="out="):
        client.concat_mla_absorb_q(array, array)


def test_devices_that_differ(client, memory):
    arrays = wrap(memory)
    arrays[1] = dlpack.Array(memory[1].ctypes.data, SHAPES[1], device=(dlpack.CUDA, 1))
    with pytest.raises(mlacat.ArgumentError, match="k_nope is on device cuda:1, k on cpu:0"):
        client.concat_mla_k(*arrays)


def test_exchange_table(client, memory):
    arrays = wrap(memory, dlpack.exchange_type())
    client.concat_mla_k(*arrays)
    assert is_right(memory)
    assert [array.reads for array in arrays] == [1, 1, 1]
    assert [array.streams for array in arrays] == [[], [], []]


def test_exchange_table_of_another_version(client, memory):
    arrays = wrap(memory, dlpack.exchange_type(major=2))
    client.concat_mla_k(*arrays)
    assert is_right(memory) and arrays[0].reads == 0


def test_gpu_memory_needs_cuda(client, memory):
    arrays = wrap(memory, device=(dlpack.CUDA, 0))
    with pytest.raises(mlacat.Error, match="CUDA"):
        client.concat_mla_k(*arrays)
    assert (memory[0] == 0).all()


def test_more_types_than_are_remembered(client, memory):
    for _ in range(20):
        memory[0][...] = 0
        client.concat_mla_k(*wrap(memory, type("Another", (dlpack.Array,), {})))
        assert is_right(memory)


def test_numpy_and_dlpack_in_one_call(client, memory):
    client.concat_mla_k(memory[0].view(np.uint16), *wrap(memory)[1:])
    assert is_right(memory)


def test_library_that_does_not_lend(client, memory):
    class Kept(dlpack.Array):
        def __dlpack__(self, **_):
            raise BufferError("it requires grad")

    class Odd(dlpack.Array):
        def __dlpack__(self, **_):
            raise ZeroDivisionError

    arrays = wrap(memory)
    with pytest.raises(mlacat.PreconditionError, match="k_nope cannot be lent by its library: it requires grad"):
        client.concat_mla_k(arrays[0], wrap(memory, Kept)[1], arrays[2])
    with pytest.raises(ZeroDivisionError):
        client.concat_mla_k(arrays[0], wrap(memory, Odd)[1], arrays[2])
    assert [array.lent for array in arrays] == [0] * 3
