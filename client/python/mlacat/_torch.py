# SPDX-License-Identifier: Apache-2.0
"""What concerns PyTorch. It is never imported here; what is here does something once the program has imported it."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from typing import Any, ContextManager

from . import _forks

_LEGACY_DEFAULT_STREAMS = (0, 1)  # cudaStreamLegacy is 1
ORIGINAL = "mlacat_original"  # of what mlacat.patch() puts in place of torch's empty_cache


def is_compiling() -> bool:
    """torch.compiler.is_compiling, from register() on."""
    return False


_library: Any = None  # torch.library.Library: the ops live as long as it does
_registering: threading.Lock
_forks.keep_lock(sys.modules[__name__], "_registering")
_is_refused = False


def register() -> bool:
    """Defines torch.ops.mlacat, for torch.compile and torch.export. False: torch is not imported, or cannot do it."""
    global _is_refused
    if _library is not None:
        return True
    torch: Any = sys.modules.get("torch")
    if not hasattr(getattr(torch, "library", None), "register_fake"):
        return False  # being imported, or before 2.4
    if not hasattr(getattr(torch, "compiler", None), "is_compiling"):
        return False
    if not _registering.acquire(blocking=False):
        return False  # another thread does it
    try:
        if _library is None and not _is_refused:
            _define(torch)
    except Exception as error:  # noqa: BLE001 - whatever torch has against it, calls work without
        _is_refused = True
        warnings.warn(f"torch.ops.mlacat cannot be defined, torch.compile does without: {error}", RuntimeWarning, 2)
    finally:
        _registering.release()
    return _library is not None


def _define(torch: Any) -> None:
    global _library, is_compiling
    from . import _client

    default = _client.default
    library = torch.library.Library("mlacat", "DEF")
    # A call cannot be captured: with the tag torch.compile(mode="reduce-overhead") leaves it out of its graphs.
    unsafe = getattr(getattr(torch, "Tag", None), "cudagraph_unsafe", None)
    tags = () if unsafe is None else (unsafe,)
    library.define("concat_mla_k(Tensor(a!) k, Tensor k_nope, Tensor k_rope) -> ()", tags=tags)
    library.define("concat_mla_absorb_q(Tensor a, Tensor b) -> Tensor", tags=tags)
    library.define("concat_mla_q(Tensor ql_nope, Tensor q_pe, Tensor(a!) q_out) -> ()", tags=tags)

    def absorb_q(a: Any, b: Any) -> Any:
        return default.concat_mla_absorb_q(a, b)

    def fake_absorb_q(a: Any, b: Any) -> Any:
        return a.new_empty((*a.shape[:-1], a.shape[-1] + b.shape[-1]))

    def fake_nothing(*_: Any) -> None:
        return None

    # One implementation for all devices: it looks itself where the tensors are.
    everywhere = "CompositeExplicitAutograd"
    library.impl("concat_mla_k", lambda k, k_nope, k_rope: default.concat_mla_k(k, k_nope, k_rope), everywhere)
    library.impl("concat_mla_absorb_q", absorb_q, everywhere)
    library.impl("concat_mla_q", lambda a, b, out: default.concat_mla_q(a, b, out), everywhere)
    torch.library.register_fake("mlacat::concat_mla_k", fake_nothing, lib=library)
    torch.library.register_fake("mlacat::concat_mla_absorb_q", fake_absorb_q, lib=library)
    torch.library.register_fake("mlacat::concat_mla_q", fake_nothing, lib=library)
    _library = library
    is_compiling = torch.compiler.is_compiling


def ops() -> Any:
    """torch.ops.mlacat, while a program is compiled or exported."""
    return sys.modules["torch"].ops.mlacat


def is_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def empty_cache() -> None:
    """torch's own torch.cuda.empty_cache, where there is anything to empty."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda"):
        function = torch.cuda.empty_cache
        getattr(function, ORIGINAL, function)()


def on_stream(array: Any, stream: int) -> ContextManager[Any]:
    """Has torch give its work on the array's device to that CUDA stream. Arrays of the host know no streams."""
    guard: ContextManager[Any] = contextlib.nullcontext()
    if is_tensor(array) and array.is_cuda:
        cuda = sys.modules["torch"].cuda
        if stream in _LEGACY_DEFAULT_STREAMS:
            guard = cuda.stream(cuda.default_stream(array.device))
        else:
            guard = cuda.stream(cuda.ExternalStream(stream, device=array.device))
    return guard


def current_stream(device: int) -> int:
    """For the extension: the current CUDA stream of a device as a number."""
    torch = sys.modules["torch"]
    return int(torch.cuda.current_stream(device).cuda_stream)
