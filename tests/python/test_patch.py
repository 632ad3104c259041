# SPDX-License-Identifier: Apache-2.0
"""mlacat.patch, on modules of the names that it knows."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

import mlacat


def original_k(k, k_nope, k_rope):
    k.view(np.uint16)[...] = 99


def original_q(a, b):
    return "the original"


@pytest.fixture
def packages(monkeypatch):
    """sglang, sgl_kernel and flashinfer, and a module of sglang that has taken a function by name."""
    made = {}
    for name in ("sglang", "sglang.jit_kernel", "sglang.jit_kernel.concat_mla", "sglang.srt", "sglang.srt.forward_mha",
                 "sgl_kernel", "flashinfer", "flashinfer.concat_ops", "other"):
        module = made[name] = types.ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("sglang.jit_kernel.concat_mla", "sgl_kernel"):
        made[name].concat_mla_k = original_k
        made[name].concat_mla_absorb_q = original_q
    made["flashinfer.concat_ops"].concat_mla_k = original_k
    made["sglang.srt.forward_mha"].concat = original_k
    made["other"].concat_mla_k = original_k
    return types.SimpleNamespace(**{name.replace(".", "_"): module for name, module in made.items()})


@pytest.fixture
def arrays(shared_daemon, as_default):
    as_default(shared_daemon)
    client = mlacat.default_client()
    return client.empty((3, 4, 192)), client.empty((3, 4, 128)), client.empty((3, 1, 64))


def test_patch_and_undo(packages, arrays):
    k = arrays[0].view(np.uint16)
    with mlacat.patch() as patch:
        assert patch.modules == ["flashinfer.concat_ops", "sgl_kernel", "sglang.jit_kernel.concat_mla",
                                 "sglang.srt.forward_mha"]
        for function in (packages.sglang_jit_kernel_concat_mla.concat_mla_k, packages.sgl_kernel.concat_mla_k,
                         packages.flashinfer_concat_ops.concat_mla_k, packages.sglang_srt_forward_mha.concat):
            k[...] = 1
            assert function(k=arrays[0], k_nope=arrays[1], k_rope=arrays[2]) is None
            assert (k == 0).all()
        assert packages.sgl_kernel.concat_mla_absorb_q(arrays[1], arrays[1]).shape == (3, 4, 256)
        assert packages.other.concat_mla_k is original_k
    assert packages.sgl_kernel.concat_mla_k is original_k
    assert packages.sgl_kernel.concat_mla_absorb_q is original_q
    assert packages.sglang_srt_forward_mha.concat is original_k
    assert packages.flashinfer_concat_ops.concat_mla_k is original_k


def test_patched_function_falls_back_to_the_original(packages, arrays):
    theirs = np.zeros((3, 4, 192), np.uint16), np.zeros((3, 4, 128), np.uint16), np.zeros((3, 1, 64), np.uint16)
    with mlacat.patch():
        packages.sgl_kernel.concat_mla_k(*theirs)  # memory that the service does not see
        assert (theirs[0] == 99).all()
        with pytest.raises(mlacat.ArgumentError):
            packages.sgl_kernel.concat_mla_k(arrays[0], arrays[1], arrays[1])
    with mlacat.patch(fallback="error"), pytest.raises(mlacat.PreconditionError):
        packages.sgl_kernel.concat_mla_k(*theirs)
    with pytest.raises(mlacat.ArgumentError):
        mlacat.patch(fallback="never")


def test_undo_leaves_what_others_have_replaced(packages, arrays):
    patch = mlacat.patch()
    packages.sgl_kernel.concat_mla_k = original_q
    patch.undo()
    patch.undo()
    assert packages.sgl_kernel.concat_mla_k is original_q
    assert packages.flashinfer_concat_ops.concat_mla_k is original_k


def test_without_any_of_the_packages(monkeypatch):
    for name in ("sglang", "sgl_kernel", "flashinfer"):
        monkeypatch.setitem(sys.modules, name, None)
    assert mlacat.patch().modules == []
