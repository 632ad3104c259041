# SPDX-License-Identifier: Apache-2.0
"""The functions, on top of a method `_run` that clients have: argument forms, and what happens without the service."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from . import _forks, _mlacat, _torch
from ._errors import ArgumentError, ArgumentTypeError, Error, StreamFailed

# Numbers of the extension's rules.
K, ABSORB_Q, Q = 0, 1, 2
FALLBACKS = ("error", "torch")
# How long calls with a fallback do without a daemon that was lost before one of them asks whether there is one again:
# the first time, and at most. An attempt to use the service may take reconnect_timeout; asking takes PROBE_MS at most.
REST_SECONDS = 1.0
REST_SECONDS_MOST = 30.0
PROBE_MS = 20

_rest_lock: threading.Lock  # of all rests; held for a few instructions
_forks.keep_lock(sys.modules[__name__], "_rest_lock")


def check_fallback(fallback: str) -> str:
    if fallback not in FALLBACKS:
        raise ArgumentError(f"fallback is {fallback!r}; give 'error' or 'torch'", _mlacat.STATUS["INVALID_ARGUMENT"])
    return fallback


def rope_of(k_rope: Any, k_pe: Any) -> Any:
    """The third argument of concat_mla_k under either of its names."""
    if (k_rope is None) == (k_pe is None):
        raise ArgumentTypeError(
            "concat_mla_k() takes k, k_nope and one of k_rope and k_pe", _mlacat.STATUS["INVALID_ARGUMENT"]
        )
    return k_pe if k_rope is None else k_rope


def _bits(array: Any) -> Any:
    """numpy arrays as integers: of two types that stand for one, as uint16 and bfloat16, neither must convert."""
    return array.view(f"u{array.itemsize}") if hasattr(array, "__array_struct__") else array


def _refuse(array: Any, name: str) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{name} is a {type(array).__name__}; give a torch tensor, a numpy array of Client.empty, or an array with "
        "__dlpack__",
        _mlacat.STATUS["INVALID_ARGUMENT"],
    )


def in_process(rule: int, out: Any, first: Any, second: Any, stream: int | None = None) -> None:
    """The copy without the service, by torch or numpy: two slice assignments, of arguments that are right."""
    if stream is not None:
        with _torch.on_stream(out, stream):
            in_process(rule, out, first, second)
        return
    width = first.shape[-1]
    out, first, second = _bits(out), _bits(first), _bits(second)
    if rule == K and len(second.shape) == len(out.shape) - 1:
        second = second[..., None, :]
    out[..., :width] = first
    out[..., width:] = second


def can_copy(out: Any, stream: int | None) -> bool:
    """Whether in_process() can: only torch is known how to be told of a CUDA stream."""
    if not hasattr(out, "__setitem__"):
        return False
    return stream is None or _torch.is_tensor(out) or hasattr(out, "__array_struct__")


class Functions:
    fallback: str = "error"
    _lost = False  # the daemon was lost, and has not answered since
    _rest_seconds = 0.0
    _rest_until = 0.0
    _rest_process = 0

    def _run(self, rule: int, out: Any, first: Any, second: Any, stream: int | None = None, /) -> None:
        raise NotImplementedError

    def empty(self, shape: Any, dtype: Any = "bf16") -> Any:
        raise NotImplementedError

    def _probe(self, timeout_ms: int, /) -> list[dict[str, Any]]:
        """The devices of a daemon that answers within that time; none if none does."""
        raise NotImplementedError

    def _is_loss(self, error: Error) -> bool:
        return error._at_connect or error.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")

    def _lose(self, error: Error) -> None:
        """After a call that failed: if it was for want of a daemon, those with a fallback rest from it."""
        if not self._is_loss(error):
            return
        now = time.monotonic()
        with _rest_lock:
            if self._is_lost() and now < self._rest_until:
                return  # another thread's call has found out first
            is_old = now - self._rest_until > REST_SECONDS_MOST or self._rest_process != os.getpid()
            self._rest_process = os.getpid()
            self._rest(now, 0.0 if is_old else self._rest_seconds)
            self._lost = True

    def _is_lost(self) -> bool:
        if self._rest_process != os.getpid():
            self._lost = False  # a forked child finds out itself
        return self._lost

    def _rest(self, now: float, before: float) -> None:
        self._rest_seconds = min(max(2 * before, REST_SECONDS), REST_SECONDS_MOST)
        self._rest_until = now + self._rest_seconds

    def _rests(self) -> bool:
        """Whether to do without the service now. After each rest one caller asks for a daemon; others rest on."""
        if not self._is_lost():
            return False
        now = time.monotonic()
        with _rest_lock:
            if now < self._rest_until:
                return True
            self._rest(now, self._rest_seconds)
        return not self._ask(PROBE_MS)

    def _ask(self, timeout_ms: int) -> list[dict[str, Any]]:
        """The devices that work, of a daemon that answers within that time; a rest is over then."""
        devices = [device for device in self._probe(timeout_ms) if device["available"]]
        if devices:
            self._lost = False
        return devices

    def _call(self, rule: int, out: Any, first: Any, second: Any, stream: int | None) -> None:
        if self._lost and self.fallback == "torch" and can_copy(out, stream) and self._rests():
            _mlacat.check_arguments(rule, out, first, second, stream)
            in_process(rule, out, first, second, stream)
            return
        try:
            self._run(rule, out, first, second, stream)
        except Error as error:
            if not self._goes_on_without(error, out, stream):
                raise
            in_process(rule, out, first, second, stream)

    def _goes_on_without(self, error: Error, out: Any, stream: int | None) -> bool:
        # A wrong argument stays wrong, and a failed stream is news of a call of before, which nobody can repeat.
        if self.fallback != "torch" or isinstance(error, (ArgumentError, StreamFailed)):
            return False
        self._lose(error)
        return can_copy(out, stream)

    def _new_output(self, a: Any, b: Any) -> Any:
        for array, name in ((a, "a"), (b, "b")):
            if not hasattr(array, "shape"):
                raise _refuse(array, name)
            if len(array.shape) == 0:
                raise ArgumentError(
                    f"{name} has 0 dimensions; at least 1 are needed", _mlacat.STATUS["INVALID_ARGUMENT"]
                )
        shape = (*a.shape[:-1], a.shape[-1] + b.shape[-1])
        if hasattr(a, "new_empty"):
            return a.new_empty(shape)
        if hasattr(a, "__array_struct__"):
            if not (self._lost and self.fallback == "torch" and self._rests()):
                try:
                    return self.empty(shape, a.dtype)
                except Error as error:
                    if self.fallback != "torch":
                        raise
                    self._lose(error)
            import numpy

            return numpy.empty(shape, a.dtype)
        raise ArgumentTypeError(
            f"concat_mla_absorb_q() makes an output for torch tensors and numpy arrays, not for {type(a).__name__}; "
            "give out=",
            _mlacat.STATUS["INVALID_ARGUMENT"],
        )

    def concat_mla_k(
        self, k: Any, k_nope: Any, k_rope: Any = None, *, k_pe: Any = None, stream: int | None = None
    ) -> None:
        """k[..., h, :] = k_nope[..., h, :] then k_rope[..., 0, :], for every head h.

        k [..., H, P+R], k_nope [..., H, P], k_rope (or k_pe) [..., 1, R] or [..., R]. `stream`: the CUDA stream, as an
        integer, that the call is ordered on; None: the current one of the tensors' library.
        """
        if k_rope is None or k_pe is not None:
            k_rope = rope_of(k_rope, k_pe)
        self._call(K, k, k_nope, k_rope, stream)

    def concat_mla_absorb_q(self, a: Any, b: Any, out: Any = None, *, stream: int | None = None) -> Any:
        """out[..., :] = a[..., :] then b[..., :]; returns out, a new one if none is given."""
        if out is None:
            out = self._new_output(a, b)
        self._call(ABSORB_Q, out, a, b, stream)
        return out

    def concat_mla_q(self, ql_nope: Any, q_pe: Any, q_out: Any, *, stream: int | None = None) -> None:
        """q_out[..., :] = ql_nope[..., :] then q_pe[..., :]."""
        self._call(Q, q_out, ql_nope, q_pe, stream)
