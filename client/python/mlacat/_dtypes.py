# SPDX-License-Identifier: Apache-2.0
"""Names of element types, and the numpy types that stand for them."""

from __future__ import annotations

from typing import Any

# The service's name: the name that torch and ml_dtypes use, numpy's type for the bits.
_TABLE = {
    "bf16": ("bfloat16", "uint16"),
    "fp16": ("float16", "float16"),
    "fp8_e4m3": ("float8_e4m3fn", "uint8"),
    "fp8_e5m2": ("float8_e5m2", "uint8"),
    "fp32": ("float32", "float32"),
}
NAMES = tuple(_TABLE)
_ALIASES = {other: name for name, (other, _) in _TABLE.items()}


def name_of(dtype: Any) -> str | None:
    """The service's name of a dtype: its own or torch's name, a torch or numpy dtype. None: it has none."""
    text = str(getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or dtype).rpartition(".")[2]
    return text if text in _TABLE else _ALIASES.get(text)


def numpy_type(dtype: Any) -> Any:
    """numpy's dtype for it: that of ml_dtypes where it is installed, else unsigned integers of the size."""
    import numpy

    name = name_of(dtype)
    if name is None:
        return numpy.dtype(dtype)  # uint16 and uint8 are the bits of bf16 and fp8
    other, bits = _TABLE[name]
    if other == bits:
        return numpy.dtype(bits)
    try:
        import ml_dtypes
    except ImportError:
        return numpy.dtype(bits)
    return numpy.dtype(getattr(ml_dtypes, other))
