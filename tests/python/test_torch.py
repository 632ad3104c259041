# SPDX-License-Identifier: Apache-2.0
"""PyTorch without a GPU: tensors on memory of the client, compiled and exported functions. gpu/ has the rest."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import mlacat

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.fixture
def tensors(shared_daemon, as_default):
    as_default(shared_daemon, fallback="torch")
    assert mlacat.register_torch_ops()
    client = mlacat.default_client()

    def new(*shape):
        tensor = torch.from_numpy(client.empty(shape, np.uint16).view(np.int16)).view(torch.bfloat16)
        return tensor.copy_(torch.randn(shape))

    return new(3, 4, 192), new(3, 4, 256)[..., :128], new(3, 1, 64)


def test_tensors_of_the_host(tensors):
    """By the service: a client does without a fallback unless it is told."""
    assert mlacat.default_client()._held()["segments"] == 3
    k, k_nope, k_rope = tensors
    mlacat.default_client().concat_mla_k(k, k_nope, k_rope)
    assert torch.equal(k, torch.cat([k_nope, k_rope.expand(3, 4, 64)], -1))


def test_memory_of_others_falls_back(tensors):
    mlacat.register_torch_ops()
    k, k_nope, k_rope = (tensor.clone() for tensor in tensors)
    mlacat.concat_mla_k(k, k_nope, k_pe=k_rope[:, 0])
    assert torch.equal(k, torch.cat([k_nope, k_rope.expand(3, 4, 64)], -1))
    q = mlacat.concat_mla_absorb_q(k_nope, k_nope)
    assert isinstance(q, torch.Tensor) and torch.equal(q, torch.cat([k_nope, k_nope], -1))


def test_compiled_without_a_break(tensors):
    k, k_nope, k_rope = tensors

    def step(k, k_nope, k_rope, out):
        mlacat.concat_mla_k(k, k_nope, k_pe=k_rope)
        mlacat.concat_mla_q(k_nope, k_nope, out)
        return k + 1, mlacat.concat_mla_absorb_q(k_nope, k_nope, out=out), mlacat.concat_mla_absorb_q(k_nope, k_nope)

    out = torch.empty(3, 4, 256, dtype=k.dtype)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    after, filled, fresh = compiled(k, k_nope, k_rope, out)
    assert torch.equal(after, torch.cat([k_nope, k_rope.expand(3, 4, 64)], -1) + 1)
    assert torch.equal(filled, torch.cat([k_nope, k_nope], -1)) and torch.equal(fresh, filled)


def test_exported(tensors):
    class Module(torch.nn.Module):
        def forward(self, a):
            return mlacat.concat_mla_absorb_q(a, a)

    a = tensors[1]
    program = torch.export.export(Module(), (a,))
    assert any(node.target is torch.ops.mlacat.concat_mla_absorb_q.default for node in program.graph.nodes)
    assert torch.equal(program.module()(a), torch.cat([a, a], -1))


def test_opcheck(tensors):
    k, k_nope, k_rope = tensors
    ops = torch.ops.mlacat
    torch.library.opcheck(ops.concat_mla_k, (k, k_nope, k_rope))
    torch.library.opcheck(ops.concat_mla_absorb_q, (k_nope, k_nope))
    torch.library.opcheck(ops.concat_mla_q, (k_nope, k_nope, torch.empty(3, 4, 256, dtype=k.dtype)))


def test_ops_are_not_for_cuda_graphs(tensors):
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    if tag is None:
        pytest.skip("this torch has no such tag")
    for name in ("concat_mla_k", "concat_mla_absorb_q", "concat_mla_q"):
        assert tag in getattr(torch.ops.mlacat, name).default.tags


LATE = """
import sys
import mlacat
mlacat.configure(socket=sys.argv[1], fallback="torch")
assert mlacat.is_available() and "torch" not in sys.modules
import torch
{}
assert torch.ops.mlacat.concat_mla_k.default is not None
def function(a):
    return mlacat.concat_mla_absorb_q(a, a)
a = torch.ones(2, 3, 4)
assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(a), torch.ones(2, 3, 8))
"""


@pytest.mark.parametrize("way", ["mlacat.is_available()", "mlacat.patch()", "mlacat.default_client()",
                                 "mlacat.concat_mla_absorb_q(torch.ones(2, 4), torch.ones(2, 4))"])
def test_torch_that_is_imported_after_the_client_has_connected(shared_daemon, way):
    subprocess.run([sys.executable, "-c", LATE.format(way), shared_daemon.socket], check=True)


def test_dtypes(tensors):
    for dtype in (torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2):
        a = tensors[1].to(dtype)
        q = mlacat.concat_mla_absorb_q(a, a)
        assert q.dtype == dtype and torch.equal(q.view(torch.uint8), torch.cat([a, a], -1).view(torch.uint8))
        assert mlacat.supports("concat_mla_k", dtype)
    with pytest.raises(mlacat.ArgumentTypeError, match="int64"):
        mlacat.concat_mla_absorb_q(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))


def test_attributes_of_older_tensors(tensors, client):
    """A tensor without DLPack's table, as before PyTorch 2.10, is read by its attributes."""

    class Older:
        __module__ = "torch"

        def __init__(self, tensor):
            self.tensor, self.shape, self.dtype, self.is_cuda = tensor, tensor.shape, tensor.dtype, False

        def data_ptr(self):
            return self.tensor.data_ptr()

        def stride(self):
            return self.tensor.stride()

    k, k_nope, k_rope = tensors
    mlacat.default_client().concat_mla_k(*map(Older, tensors))
    assert torch.equal(k, torch.cat([k_nope, k_rope.expand(3, 4, 64)], -1))
