# SPDX-License-Identifier: Apache-2.0
"""Sends the calls of SGLang and FlashInfer to the service, without a change to them."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType, TracebackType
from typing import Any, Callable

from . import _client, _functions
from ._errors import ArgumentError, Error, StreamFailed

# Where the functions are made, or offered under their public name.
_SOURCES: dict[str, tuple[str, ...]] = {
    "sglang.jit_kernel.concat_mla": ("concat_mla_k", "concat_mla_absorb_q"),
    "sgl_kernel": ("concat_mla_k", "concat_mla_absorb_q"),
    "sgl_kernel.elementwise": ("concat_mla_k", "concat_mla_absorb_q"),
    "flashinfer.concat_ops": ("concat_mla_k",),
    "flashinfer": ("concat_mla_k",),
}
# Packages whose modules may have taken a function by `from ... import`.
_CALLERS = ("sglang", "sgl_kernel", "flashinfer", "vllm")


def _replacement(name: str, original: Callable[..., Any], fallback: str) -> Callable[..., Any]:
    """The service's function; the original where the service cannot run the call."""
    default = _client.default
    ours = default.concat_mla_k if name == "concat_mla_k" else default.concat_mla_absorb_q

    @functools.wraps(original)
    def replacement(*args: Any, **keywords: Any) -> Any:
        try:
            return ours(*args, **keywords)
        except Error as error:
            if fallback == "error" or isinstance(error, (ArgumentError, StreamFailed)):
                raise
        return original(*args, **keywords)

    return replacement


class Patch:
    """What mlacat.patch() did: `modules` are the names of the modules that were changed. undo() takes it back."""

    def __init__(self, fallback: str) -> None:
        self._changed: list[tuple[ModuleType, str, Any, Any]] = []
        replacements: dict[int, tuple[str, Any, Any]] = {}
        for source, names in _SOURCES.items():
            module = _import(source)
            for name in names if module is not None else ():
                original = getattr(module, name, None)
                if callable(original) and id(original) not in replacements:
                    replacements[id(original)] = (name, original, _replacement(name, original, fallback))
        for module in _callers():
            for attribute, value in list(vars(module).items()):
                known = replacements.get(id(value))
                if known is not None and known[1] is value:
                    setattr(module, attribute, known[2])
                    self._changed.append((module, attribute, value, known[2]))

    @property
    def modules(self) -> list[str]:
        return sorted({module.__name__ for module, _, _, _ in self._changed})

    def undo(self) -> None:
        """Puts the functions back that were there, but for those that somebody else has replaced since."""
        for module, attribute, original, replacement in reversed(self._changed):
            if getattr(module, attribute, None) is replacement:
                setattr(module, attribute, original)
        self._changed.clear()

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _callers() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and name.partition(".")[0] in _CALLERS
    ]


def patch(fallback: str = "original") -> Patch:
    """Replaces concat_mla_k and concat_mla_absorb_q of sglang.jit_kernel.concat_mla, sgl_kernel and
    flashinfer.concat_ops, those of them that can be imported, and in modules of sglang, flashinfer and vllm that have
    taken them by name already, with the service's. Calls use the default client.

    fallback: "original" calls the function that was there when the service cannot run a call; "error" raises, and
    "torch" copies in process, as configure(fallback=...). Use it in a `with`, or keep it and call undo().
    """
    if fallback not in ("original", *_functions.FALLBACKS):
        _functions.check_fallback(fallback)
    if fallback == "torch":
        _client.default.fallback = "torch"
    return Patch(fallback)
