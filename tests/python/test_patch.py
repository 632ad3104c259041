# SPDX-License-Identifier: Apache-2.0
"""mlacat.patch, on modules of the names that it knows."""

from __future__ import annotations

import signal
import sys
import types
import warnings

import numpy as np
import pytest

import mlacat
from test_lifecycle import call_until, seconds_of


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


def callers(patch):
    """The modules that were changed, but for torch's, where it is installed."""
    return [name for name in patch.modules if not name.startswith("torch.")]


def test_patch_and_undo(packages, arrays):
    k = arrays[0].view(np.uint16)
    with mlacat.patch() as patch:
        assert callers(patch) == ["flashinfer.concat_ops", "sgl_kernel", "sglang.jit_kernel.concat_mla",
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


@pytest.mark.parametrize("fallback", ["original", "torch"])
def test_patched_functions_do_not_wait_for_a_lost_daemon(packages, daemon, as_default, rest, monkeypatch, fallback):
    rest(3600.0)
    monkeypatch.setattr(mlacat._functions, "PROBE_MS", 5000)
    as_default(daemon, reconnect_timeout=0.5)
    client = mlacat.default_client()
    arrays = client.empty((3, 4, 192)), client.empty((3, 4, 128)), client.empty((3, 1, 64))
    k = arrays[0].view(np.uint16)
    missing = 99 if fallback == "original" else 0
    with mlacat.patch(fallback):
        packages.sgl_kernel.concat_mla_k(*arrays)
        assert (k == 0).all()
        daemon.stop(signal.SIGKILL)
        packages.sgl_kernel.concat_mla_k(*arrays)  # may wait: the daemon may come back
        assert seconds_of(packages.sgl_kernel.concat_mla_k, *arrays, times=100) < 10  # not 50
        assert (k == missing).all()
        daemon.start()
        k[...] = 1
        packages.sgl_kernel.concat_mla_k(*arrays)
        assert (k == missing).all() and client.server()["reconnects"] == 0  # it rests

        def call_after_the_rest():
            mlacat._client.default._rest_until = 0.0
            packages.sgl_kernel.concat_mla_k(*arrays)

        # A slow machine may not come back at the first try.
        call_until(lambda: client.server()["reconnects"] == 1, call_after_the_rest)
        assert (k == 0).all()


def functions(packages):
    return [packages.sgl_kernel.concat_mla_k, packages.sglang_jit_kernel_concat_mla.concat_mla_k,
            packages.sglang_srt_forward_mha.concat, packages.flashinfer_concat_ops.concat_mla_k]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_patches_are_undone_in_any_order(packages, order):
    patches, tops = [], [original_k]
    for fallback in ("original", "torch", "torch"):
        patches.append(mlacat.patch(fallback))
        tops.append(packages.sgl_kernel.concat_mla_k)
    standing = {0, 1, 2}
    for number in order:
        patches[number].undo()
        standing.remove(number)
        top = tops[max(standing, default=-1) + 1]
        assert all(function is top for function in functions(packages))
        assert mlacat._client.default.fallback == ("torch" if standing & {1, 2} else "error")
    assert packages.sgl_kernel.concat_mla_absorb_q is original_q


def test_patch_on_a_patch_has_the_original_under_it(packages, arrays):
    """Not the first one's replacement, which would try the service once more, with its own fallback."""
    theirs = np.zeros((3, 4, 192), np.uint16), np.zeros((3, 4, 128), np.uint16), np.zeros((3, 1, 64), np.uint16)
    first = mlacat.patch("error")
    with mlacat.patch():
        packages.sgl_kernel.concat_mla_k(*theirs)
        assert (theirs[0] == 99).all()
        first.undo()
        packages.sgl_kernel.concat_mla_k(*arrays)
        assert (arrays[0].view(np.uint16) == 0).all()


def test_warning_when_nothing_was_replaced(monkeypatch, tmp_path):
    for name in ("sglang", "sgl_kernel", "flashinfer"):
        monkeypatch.setitem(sys.modules, name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlacat.patch().undo()  # none of them is there
    monkeypatch.setitem(sys.modules, "flashinfer", types.ModuleType("flashinfer"))
    with pytest.warns(RuntimeWarning, match="flashinfer cannot be imported or has no concat_mla_k") as caught:
        mlacat.patch().undo()
    assert caught[0].filename == __file__
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.delitem(sys.modules, "sgl_kernel")
    (tmp_path / "sgl_kernel.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(RuntimeWarning, match="sgl_kernel cannot be imported"):
        mlacat.patch().undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            mlacat.patch(fallback="torch")  # who could undo it?
    assert mlacat._client.default.fallback == "error"


def test_no_warning_when_something_was_replaced(packages):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mlacat.patch(), mlacat.patch():
            pass


def test_undo_leaves_what_others_have_replaced(packages, arrays):
    patch = mlacat.patch()
    packages.sgl_kernel.concat_mla_k = original_q
    patch.undo()
    patch.undo()
    assert packages.sgl_kernel.concat_mla_k is original_q
    assert packages.flashinfer_concat_ops.concat_mla_k is original_k


def test_undo_reaches_modules_that_were_imported_since(packages, monkeypatch):
    late = types.ModuleType("vllm.late")
    monkeypatch.setitem(sys.modules, "vllm.late", late)
    with mlacat.patch():
        late.concat_mla_k = packages.sgl_kernel.concat_mla_k
        assert late.concat_mla_k is not original_k
    assert late.concat_mla_k is original_k


def test_undo_takes_the_fallback_back(packages, arrays):
    with mlacat.patch(fallback="torch"):
        assert mlacat._client.default.fallback == "torch"
    assert mlacat._client.default.fallback == "error"


def test_packages_that_fail_when_they_are_imported(packages, monkeypatch, tmp_path):
    """As those do that look for a GPU, or for a library of it."""
    (tmp_path / "sgl_kernel.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sgl_kernel")

    def refuse(name):
        raise RuntimeError(f"no GPU for {name}")

    del packages.flashinfer_concat_ops.concat_mla_k
    packages.flashinfer_concat_ops.__getattr__ = refuse
    with mlacat.patch() as patch:
        assert callers(patch) == ["sglang.jit_kernel.concat_mla", "sglang.srt.forward_mha"]


def test_program_that_is_compiled_has_the_original(packages, arrays, monkeypatch):
    """It cannot fall back when it runs, and the extension would break it."""
    monkeypatch.setattr(mlacat._torch, "is_compiling", lambda: True)
    with mlacat.patch():
        packages.sgl_kernel.concat_mla_k(*arrays)
        assert (arrays[0].view(np.uint16) == 99).all()
    entered = []
    monkeypatch.setattr(mlacat._torch, "ops", lambda: types.SimpleNamespace(concat_mla_k=lambda *a: entered.append(a)))
    with mlacat.patch(fallback="error"):
        packages.sgl_kernel.concat_mla_k(*arrays)
        assert len(entered) == 1


@pytest.fixture
def fake_torch(monkeypatch):
    """torch.cuda.empty_cache, and what it was called for."""
    names = ("torch", "torch.cuda", "torch.cuda.memory")
    torch, cuda, memory = modules = [types.ModuleType(name) for name in names]
    for name, module in zip(names, modules):
        monkeypatch.setitem(sys.modules, name, module)
    torch.cuda, cuda.memory, cuda.emptied = cuda, memory, []

    def empty_cache():
        cuda.emptied.append("torch")

    cuda.empty_cache = memory.empty_cache = empty_cache
    return torch


def test_empty_cache_of_torch(packages, fake_torch, monkeypatch):
    cuda = fake_torch.cuda
    theirs = packages.sglang_srt_forward_mha.clear = cuda.empty_cache
    monkeypatch.setattr(mlacat._client.default, "reclaim", lambda timeout: cuda.emptied.append(timeout) or True)
    assert mlacat.empty_cache(0.5)
    assert cuda.emptied == ["torch", 0.5]
    with mlacat.patch() as patch:
        assert {"torch.cuda", "torch.cuda.memory", "sglang.srt.forward_mha"} < set(patch.modules)
        for function in (cuda.empty_cache, cuda.memory.empty_cache, packages.sglang_srt_forward_mha.clear):
            cuda.emptied.clear()
            assert function() is None
            assert cuda.emptied == ["torch", 1.0]
        cuda.emptied.clear()
        assert mlacat.empty_cache(0.5)
        assert cuda.emptied == ["torch", 0.5]
    assert cuda.empty_cache is cuda.memory.empty_cache is packages.sglang_srt_forward_mha.clear is theirs
    first, second = mlacat.patch(), mlacat.patch()
    cuda.emptied.clear()
    cuda.empty_cache()
    assert cuda.emptied == ["torch", 1.0]
    first.undo()
    second.undo()
    assert cuda.empty_cache is cuda.memory.empty_cache is packages.sglang_srt_forward_mha.clear is theirs


def test_empty_cache_without_the_service(fake_torch, as_default):
    as_default("/nowhere/socket")
    assert mlacat.empty_cache()  # no client, no memory of it; and none is made
    assert fake_torch.cuda.emptied == ["torch"] and mlacat._client.default._client is None


def test_without_any_of_the_packages(monkeypatch):
    for name in ("sglang", "sgl_kernel", "flashinfer", "torch", "torch.cuda", "torch.cuda.memory"):
        monkeypatch.setitem(sys.modules, name, None)
    patch = mlacat.patch()
    patch.undo()
    assert patch.modules == []
    assert mlacat.empty_cache()


class Library:
    """torch.library.Library, with what was defined."""

    def __init__(self, name, kind):
        self.defined = {}

    def define(self, schema, *, tags=()):
        self.defined[schema.partition("(")[0]] = tags

    def impl(self, name, function, key):
        assert name in self.defined


@pytest.fixture
def late_torch(fake_torch, monkeypatch):
    """A torch that the package has not seen so far."""
    fake_torch.library = types.SimpleNamespace(Library=Library, register_fake=lambda name, function, lib: None)
    fake_torch.compiler = types.SimpleNamespace(is_compiling=lambda: False)
    monkeypatch.setattr(mlacat._torch, "_library", None)
    monkeypatch.setattr(mlacat._torch, "_is_refused", False)
    monkeypatch.setattr(mlacat._torch, "is_compiling", mlacat._torch.is_compiling)
    return fake_torch


class TensorMethods:
    dtype, is_cuda = "torch.bfloat16", False

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(stride // self.array.itemsize for stride in self.array.strides)


@pytest.fixture
def tensors(arrays):
    """Of a class of their own: the extension remembers those that it has met."""
    return list(map(type("Tensor", (TensorMethods,), {"__module__": "torch"}), arrays))


@pytest.mark.parametrize("by", ["is_available", "default_client", "patch", "a tensor", "a tensor without a daemon"])
def test_torch_that_is_imported_late_gets_its_ops(arrays, tensors, packages, late_torch, as_default, by):
    if by == "a tensor":
        mlacat.concat_mla_k(*tensors)
        assert (arrays[0].view(np.uint16) == 0).all()
    elif by == "patch":
        mlacat.patch().undo()
    elif by == "a tensor without a daemon":
        as_default("/nowhere/socket")
        with pytest.raises(mlacat.ServiceLost):
            mlacat.concat_mla_k(*tensors)
    else:
        getattr(mlacat, by)()
    library = mlacat._torch._library
    assert sorted(library.defined) == ["concat_mla_absorb_q", "concat_mla_k", "concat_mla_q"]
    assert mlacat._torch.is_compiling is late_torch.compiler.is_compiling
    assert mlacat.register_torch_ops() and mlacat._torch._library is library


def test_ops_are_not_for_cuda_graphs(late_torch):
    assert mlacat.register_torch_ops()
    assert set(mlacat._torch._library.defined.values()) == {()}
    late_torch.Tag = types.SimpleNamespace(cudagraph_unsafe="unsafe")
    mlacat._torch._library = None
    assert mlacat.register_torch_ops()
    assert set(mlacat._torch._library.defined.values()) == {("unsafe",)}


def test_ops_that_cannot_be_defined(arrays, tensors, late_torch, monkeypatch):
    """The call that has found torch goes on without them, and says so once."""
    late_torch.library.Library = None
    with pytest.warns(RuntimeWarning, match="cannot be defined") as told:
        mlacat.concat_mla_k(*tensors)
        mlacat.default_client()
        assert mlacat.is_available() and not mlacat.register_torch_ops()
    assert len(told) == 1
    assert (arrays[0].view(np.uint16) == 0).all()


@pytest.mark.parametrize("missing", ["register_fake", "is_compiling"])
def test_torch_that_is_too_old_for_the_ops(fake_torch, monkeypatch, missing):
    """The package works without them: importing it must not fail."""
    names = {"Library": None, "register_fake": None} if missing != "register_fake" else {"Library": None}
    fake_torch.library = types.SimpleNamespace(**names)
    fake_torch.compiler = types.SimpleNamespace(**({"is_compiling": None} if missing != "is_compiling" else {}))
    monkeypatch.setattr(mlacat._torch, "_library", None)
    monkeypatch.setattr(mlacat._torch, "_is_refused", False)
    assert not mlacat.register_torch_ops()
