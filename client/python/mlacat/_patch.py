# SPDX-License-Identifier: Apache-2.0
"""Sends the calls of SGLang and FlashInfer to the service, without a change to them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from types import ModuleType, TracebackType
from typing import Any, Callable

from . import _client, _functions, _torch
from ._errors import ArgumentError, Error, StreamFailed

# Where the functions are made, or offered under their public name.
_SOURCES: dict[str, tuple[str, ...]] = {
    "sglang.jit_kernel.concat_mla": ("concat_mla_k", "concat_mla_absorb_q"),
    "sgl_kernel": ("concat_mla_k", "concat_mla_absorb_q"),
    "sgl_kernel.elementwise": ("concat_mla_k", "concat_mla_absorb_q"),
    "flashinfer.concat_ops": ("concat_mla_k",),
    "flashinfer": ("concat_mla_k",),
}
# Where torch has its empty_cache. torch itself is never imported here.
_TORCH = ("torch.cuda.memory", "torch.cuda")
# Packages whose modules may have taken a function by `from ... import`.
_CALLERS = ("sglang", "sgl_kernel", "flashinfer", "vllm")

Function = Callable[..., Any]


def _replacement(name: str, fallback: str, original: Function) -> Function:
    """The service's function; the original where the service cannot run the call."""
    import mlacat

    ours: Function = getattr(mlacat, name)
    default = _client.default

    @functools.wraps(original)
    def replacement(*args: Any, **keywords: Any) -> Any:
        # A program that is compiled cannot choose another one when it runs.
        if fallback == "original" and (_torch.is_compiling() or default._lost and default._rests()):
            return original(*args, **keywords)
        try:
            return ours(*args, **keywords)
        except Error as error:
            if fallback == "error" or isinstance(error, (ArgumentError, StreamFailed)):
                raise
            default._lose(error)
        return original(*args, **keywords)

    return replacement


def _emptying(original: Function) -> Function:
    @functools.wraps(original)
    def empty_cache() -> None:
        original()
        _client.default.reclaim(_client.RECLAIM_SECONDS)

    setattr(empty_cache, _torch.ORIGINAL, original)
    return empty_cache


class Patch:
    """What mlacat.patch() did: `modules` are the names of the modules that were changed. undo() takes it back."""

    def __init__(self, fallback: str) -> None:
        global _fallback_before
        self._fallback = fallback
        self._before: dict[int, tuple[Function, Function]] = {}  # by the id of a replacement: it, and what was there
        replacements: dict[int, tuple[Function, Function]] = {}  # by the id of what was there: it, and the replacement

        def replace(before: Any, make: Callable[[Function], Function]) -> None:
            if callable(before) and id(before) not in replacements:
                replacement = make(_original(before))
                replacements[id(before)] = before, replacement
                self._before[id(replacement)] = replacement, before

        for source, names in _SOURCES.items():
            module = _import(source)
            for name in names:
                replace(_get(module, name), functools.partial(_replacement, name, fallback))
        self._is_of_use = bool(replacements)
        for source in _TORCH:
            replace(_get(sys.modules.get(source), "empty_cache"), _emptying)
        self.modules = _swap(replacements)
        if fallback == "torch":
            if not _is_lenient():
                _fallback_before = _client.default.fallback
            _client.default.fallback = "torch"
        _standing.append(self)

    def undo(self) -> None:
        """Puts the functions back that were there, also in modules that were imported since; but not where somebody
        else has replaced them. Patches may be undone in any order: the others go on."""
        if self not in _standing:
            return
        _standing.remove(self)
        _swap(self._before)
        for other in _standing:
            for key, (replacement, before) in other._before.items():
                other._before[key] = replacement, self._get_before(before)
        self._before.clear()
        if self._fallback == "torch" and not _is_lenient():
            _client.default.fallback = _fallback_before

    def _get_before(self, function: Function) -> Function:
        """What this patch has replaced by the function; the function itself if it is none of its replacements."""
        replacement, before = self._before.get(id(function), (None, function))
        return before if replacement is function else function

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


_standing: list[Patch] = []  # made and not undone, in the order in which they were made
_fallback_before = "error"  # the default client's, before the first of them with fallback="torch"


def _is_lenient() -> bool:
    return any(patch._fallback == "torch" for patch in _standing)


def _original(function: Function) -> Function:
    """What was there before all patches: a replacement does not fall back to one of another patch."""
    for patch in reversed(_standing):
        function = patch._get_before(function)
    return function


def _import(name: str) -> ModuleType | None:
    """None also for a module that fails otherwise: packages with kernels look for GPUs and libraries when imported."""
    try:
        return importlib.import_module(name)
    except Exception:  # noqa: BLE001
        return None


def _is_here(package: str) -> bool:
    """Imported, or to be imported."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _get(module: ModuleType | None, name: str) -> Any:
    """None also where a module makes its names when they are asked for, and fails."""
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001
        return None


def _swap(swaps: dict[int, tuple[Function, Function]]) -> list[str]:
    """Puts the second in place of the first, wherever a caller's module has it; `swaps` is by the id of the first.
    Returns the names of the modules."""
    changed = set()
    for module in _callers():
        for attribute, value in list(vars(module).items()):
            swap = swaps.get(id(value))
            if swap is not None and swap[0] is value:
                setattr(module, attribute, swap[1])
                changed.add(module.__name__)
    return sorted(changed)


def _callers() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and (name.partition(".")[0] in _CALLERS or name in _TORCH)
    ]


def patch(fallback: str = "original") -> Patch:
    """Replaces concat_mla_k and concat_mla_absorb_q of sglang.jit_kernel.concat_mla, sgl_kernel and
    flashinfer.concat_ops, those of them that can be imported, and in modules of sglang, flashinfer and vllm that have
    taken them by name already, with the service's. Calls use the default client. torch.cuda.empty_cache, where torch is
    imported, becomes mlacat.empty_cache.

    fallback: "original" calls the function that was there when the service cannot run a call; "error" raises, and
    "torch" copies in process, as configure(fallback=...). Programs that torch.compile makes take the function that was
    there with "original", the service's otherwise. Use it in a `with`, or keep it and call undo(). Of several patches
    the last one counts, but for "torch", which is the default client's and holds for all while one such patch stands.

    Warns (RuntimeWarning) if it has found none of the functions though one of these packages is installed: a version
    that has moved them, or cannot be imported, would go on without the service unnoticed. Without any of the packages
    there is nothing to replace, and no warning.
    """
    if fallback not in ("original", *_functions.FALLBACKS):
        _functions.check_fallback(fallback)
    made = Patch(fallback)
    try:
        _warn_if_useless(made)
        _torch.register()
    except RuntimeWarning:  # as an error
        made.undo()
        raise
    return made


def _warn_if_useless(made: Patch) -> None:
    packages = [name for name in dict.fromkeys(source.partition(".")[0] for source in _SOURCES) if _is_here(name)]
    if packages and not made._is_of_use:
        warnings.warn(
            f"mlacat.patch() has replaced nothing: {', '.join(packages)} cannot be imported or has no concat_mla_k or "
            f"concat_mla_absorb_q in {', '.join(_SOURCES)}; import them from mlacat where they are called",
            RuntimeWarning,
            stacklevel=3,
        )
