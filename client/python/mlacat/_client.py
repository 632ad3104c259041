# SPDX-License-Identifier: Apache-2.0
"""Clients: one that a program makes, and the default one that the functions of the package use."""

from __future__ import annotations

import atexit
import copy
import math
import operator
import os
import threading
from typing import Any

from . import _dtypes, _forks, _functions, _mlacat, _torch
from ._errors import ArgumentError, Error, PreconditionError, StreamFailed


# How long it is waited for the daemon to release memory that was freed.
RECLAIM_SECONDS = 1.0
# How long it is waited for a daemon to say that it is there.
ANSWER_MS = 500


def _microseconds(seconds: float) -> int:
    """Of a timeout: none is negative, which means something else to the extension, and a century is long enough."""
    return round(min(max(seconds, 0.0), 3.2e9) * 1e6)


class Client(_functions.Functions, _mlacat.Client):
    """A connection to mlacatd, for use from any thread. In a forked child it connects anew.

    socket: its path; None: $MLACAT_SOCKET, else where libmlacat looks. name: for the daemon's logs. fallback: what a
    call does when the service cannot run it: "error" raises, "torch" copies in process; None: $MLACAT_FALLBACK, else
    "error". connect_timeout, reconnect_timeout: seconds, the second for a daemon that went away. spin_us: as
    mlacat_connect_options says.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        name: str | None = None,
        *,
        fallback: str | None = None,
        connect_timeout: float = 2.0,
        reconnect_timeout: float = 2.0,
        spin_us: int = 0,
    ) -> None:
        self.fallback = _functions.check_fallback(fallback or os.environ.get("MLACAT_FALLBACK", "error"))
        super().__init__(
            None if socket is None else os.fspath(socket),
            name,
            connect_timeout_ms=max(1, round(connect_timeout * 1000)),
            reconnect_timeout_ms=max(1, round(reconnect_timeout * 1000)),
            spin_us=spin_us,
        )

    # The extension's, not the mixin's.
    _run = _mlacat.Client._run
    _probe = _mlacat.Client._probe

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except StreamFailed:
            if kind is None:
                raise  # else what went wrong first is on its way

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "bf16") -> Any:
        """A zeroed numpy array in memory that the daemon's host device sees too.

        dtype: "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "fp32" or a numpy dtype. numpy has no type of its own for bf16
        and fp8: those of ml_dtypes where it is installed, else uint16 and uint8.
        """
        import numpy

        kind = _dtypes.numpy_type(dtype)
        try:
            shape = (operator.index(shape),)  # type: ignore[arg-type]
        except TypeError:
            shape = tuple(map(operator.index, shape))  # type: ignore[arg-type]
        if any(extent < 0 for extent in shape):
            raise ArgumentError(
                f"the shape {shape} has a negative extent; give 0 or more", _mlacat.STATUS["INVALID_ARGUMENT"]
            )
        nbytes = math.prod(shape) * kind.itemsize
        if nbytes == 0:
            return numpy.empty(shape, kind)
        return numpy.asarray(self._alloc(nbytes)).view(kind).reshape(shape)

    def reclaim(self, timeout: float | None = RECLAIM_SECONDS) -> None:
        """Has the daemon release the GPU memory that was freed since it was registered, and returns when it has. After
        `timeout` seconds (None: never) it raises an Error whose status is "DEADLINE_EXCEEDED". Memory that torch only
        caches is not free: mlacat.empty_cache() frees that before."""
        self._reclaim(-1 if timeout is None else _microseconds(timeout))

    def supports(self, op: str, dtype: Any = None, device: str | None = None) -> bool:
        """Whether the daemon runs this op ("concat_mla_k", ...) with elements of this dtype on a device that is
        available: a UUID, a kind ("cuda", "host"), or None for any. Head counts, widths and strides do not matter.
        As of when the client last connected: the daemon is not asked, and may have gone since."""
        return _is_known(op, dtype) and _is_among(device, [row for row in self.devices() if row["available"]])


def _is_known(op: str, dtype: Any) -> bool:
    known = op in ("concat_mla_k", "concat_mla_absorb_q", "concat_mla_q")
    return known and (dtype is None or _dtypes.name_of(dtype) is not None)


def _is_among(device: str | None, rows: list[dict[str, Any]]) -> bool:
    wanted = None if device is None else str(device)
    return any(wanted in (None, row["uuid"], row["kind"]) for row in rows)


def _without_traceback(error: Error) -> Error:
    """Another one like it, which does not keep the tensors of a caller that it went through."""
    other = copy.copy(error)
    other._at_connect = error._at_connect
    return other


class _Default(_functions.Functions):
    """The client behind the functions of the package: connects at the first call. There is one."""

    def __init__(self) -> None:
        self._lock: threading.Lock
        _forks.keep_lock(self, "_lock")
        self._options: dict[str, Any] = {}
        self._client: Client | None = None
        self._failures = 0  # attempts to connect
        self._failure: Error | None = None  # of the last one
        self.fallback = os.environ.get("MLACAT_FALLBACK", "error")

    def configure(self, options: dict[str, Any]) -> None:
        fallback = _functions.check_fallback(options.get("fallback") or os.environ.get("MLACAT_FALLBACK", "error"))
        self._options, self.fallback = options, fallback
        self.forget()  # last: it may have to tell of a call that failed

    def forget(self) -> None:
        with self._lock:
            client, self._client, self._failure = self._client, None, None
            self._lost, self._rest_seconds = False, 0.0
            self.__dict__.pop("_run", None)
        if client is not None:
            client.close()

    def get(self) -> Client:
        _torch.register()
        failures = self._failures
        with self._lock:
            if self._client is None:
                if failures != self._failures and self._failure is not None:
                    raise _without_traceback(self._failure)  # of another thread, which this one has waited for
                self._client = self._connect()
                self._run = self._client._run  # type: ignore[method-assign]  # one lookup less in each call
            return self._client

    def _connect(self) -> Client:
        if os.environ.get("MLACAT_DISABLE", "0") not in ("", "0"):
            raise PreconditionError(
                "MLACAT_DISABLE is set: the service is not used", _mlacat.STATUS["FAILED_PRECONDITION"]
            )
        _functions.check_fallback(self.fallback)
        try:
            return Client(**self._options)
        except Error as error:
            error._at_connect = True
            self._failures, self._failure = self._failures + 1, _without_traceback(error)
            raise

    def _probe(self, timeout_ms: int, /) -> list[dict[str, Any]]:
        client = self._client
        if client is not None:
            return client._probe(timeout_ms)
        try:
            with Client(**{**self._options, "connect_timeout": timeout_ms / 1000}) as client:
                return client.devices()
        except Error:
            return []

    def _run(self, rule: int, out: Any, first: Any, second: Any, stream: int | None = None, /) -> None:
        if not _mlacat.check_arguments(rule, out, first, second, stream):  # else there is nothing to do
            self.get()._run(rule, out, first, second, stream)

    def empty(self, shape: Any, dtype: Any = "bf16") -> Any:
        return self.get().empty(shape, dtype)

    def reclaim(self, timeout: float | None) -> bool:
        """Client.reclaim, if there is a client; whether all is back."""
        client = self._client
        try:
            if client is not None and not client.closed:
                client.reclaim(timeout)
        except Error:
            return False
        return True


default = _Default()
atexit.register(default.forget)


def default_client() -> Client:
    """The client that the functions of the package use; connects if there is none."""
    return default.get()


def configure(**options: Any) -> None:
    """Options of the default client, as Client takes them; it connects with them at its next use."""
    default.configure(options)


def empty_cache(timeout: float | None = RECLAIM_SECONDS) -> bool:
    """torch.cuda.empty_cache(), and then Client.reclaim of the default client, if there is one: what torch caches is
    the GPU's again when this returns, and may be allocated in other sizes at once. False: not within `timeout` seconds,
    or without the daemon."""
    _torch.empty_cache()
    return default.reclaim(timeout)


def is_available(device: str | None = None) -> bool:
    """Whether a daemon answers now, with a device of this UUID or kind ("cuda", "host"; None: any) that works. Connects
    the default client if there is none, and asks over a connection of its own, which needs a place among `max_clients`.
    Some 0.2 ms; at once if nobody listens. With a daemon that listens and does not answer it takes 0.5 s, or the
    client's connect_timeout if that has not connected yet."""
    try:
        closed = default.get().closed
    except Error:
        return False
    return not closed and _is_among(device, default._ask(ANSWER_MS))


def supports(op: str, dtype: Any = None, device: str | None = None) -> bool:
    """Whether a daemon answers now that runs this op ("concat_mla_k", ...) with elements of this dtype on a device that
    works, as is_available() finds out. Head counts, widths and strides do not matter."""
    return _is_known(op, dtype) and is_available(device)

