# SPDX-License-Identifier: Apache-2.0
"""Runs the concat-MLA kernels of the mlacat service on tensors of this process.

    from mlacat import concat_mla_k, concat_mla_absorb_q      # in place of sgl_kernel's or flashinfer's

torch CUDA tensors: ordered on the current CUDA stream, without a wait in this process. numpy arrays of Client.empty:
the call returns when it is done. docs/python.md of the project has the rest.
"""

from __future__ import annotations

from typing import Any

from . import _functions, _torch
from ._client import Client, configure, default, default_client, empty_cache, is_available, supports
from ._errors import (
    ArgumentError,
    ArgumentTypeError,
    CaptureError,
    Error,
    PreconditionError,
    ResourceError,
    ServiceLost,
    StreamFailed,
    UnimplementedError,
)
from ._mlacat import VERSION as __version__
from ._patch import Patch, patch


def concat_mla_k(k: Any, k_nope: Any, k_rope: Any = None, *, k_pe: Any = None, stream: int | None = None) -> None:
    """k[..., h, :] = k_nope[..., h, :] then k_rope[..., 0, :], for every head h. Client.concat_mla_k says more."""
    if k_rope is None or k_pe is not None:
        k_rope = _functions.rope_of(k_rope, k_pe)
    if _torch.is_compiling():
        _torch.ops().concat_mla_k(k, k_nope, k_rope)
        return
    default._call(0, k, k_nope, k_rope, stream)


def concat_mla_absorb_q(a: Any, b: Any, out: Any = None, *, stream: int | None = None) -> Any:
    """out[..., :] = a[..., :] then b[..., :]; returns out, a new one if none is given."""
    if _torch.is_compiling():
        if out is None:
            return _torch.ops().concat_mla_absorb_q(a, b)
        _torch.ops().concat_mla_q(a, b, out)
        return out
    return default.concat_mla_absorb_q(a, b, out, stream=stream)


def concat_mla_q(ql_nope: Any, q_pe: Any, q_out: Any, *, stream: int | None = None) -> None:
    """q_out[..., :] = ql_nope[..., :] then q_pe[..., :]."""
    if _torch.is_compiling():
        _torch.ops().concat_mla_q(ql_nope, q_pe, q_out)
        return
    default._call(2, q_out, ql_nope, q_pe, stream)


def register_torch_ops() -> bool:
    """Makes the functions known to torch.compile and torch.export. Happens by itself when torch was imported before
    this package, else with patch(), is_available(), default_client() or the first call on a tensor; False if torch is
    not imported."""
    return _torch.register()


_torch.register()

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CaptureError",
    "Client",
    "Error",
    "Patch",
    "PreconditionError",
    "ResourceError",
    "ServiceLost",
    "StreamFailed",
    "UnimplementedError",
    "__version__",
    "concat_mla_absorb_q",
    "concat_mla_k",
    "concat_mla_q",
    "configure",
    "default_client",
    "empty_cache",
    "is_available",
    "patch",
    "register_torch_ops",
    "supports",
]
