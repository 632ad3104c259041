# SPDX-License-Identifier: Apache-2.0
"""The errors of the package. Each has `code` (gRPC's number), `status` (its name) and `scope` (what is lost)."""

from __future__ import annotations

from . import _mlacat

_STATUS_NAMES = {number: name for name, number in _mlacat.STATUS.items()}
_SCOPE_NAMES = {number: name for name, number in _mlacat.SCOPE.items()}


class Error(RuntimeError):
    """What all errors of the package are. Raised itself for codes that have no class of their own."""

    _at_connect = False  # of an attempt to connect, whatever its code

    def __init__(self, message: str, code: int = _mlacat.STATUS["UNKNOWN"], scope: str = "CALL") -> None:
        super().__init__(message)
        self.code = code
        self.scope = scope

    @property
    def status(self) -> str:
        """`"INVALID_ARGUMENT"` and so on."""
        return _STATUS_NAMES.get(self.code, "UNKNOWN")

    def __reduce__(self) -> tuple[type[Error], tuple[str, int, str]]:  # exceptions cross process pools
        return type(self), (str(self), self.code, self.scope)


class ArgumentError(Error, ValueError):
    """INVALID_ARGUMENT: an argument is wrong; nothing was written."""


class ArgumentTypeError(ArgumentError, TypeError):
    """INVALID_ARGUMENT: an argument has the wrong type or dtype."""


class PreconditionError(Error):
    """FAILED_PRECONDITION: memory that cannot be shared, a closed client; the message says what to do."""


class CaptureError(PreconditionError):
    """The CUDA stream is being captured into a graph, where a call of the service cannot be; nothing was touched."""


class ResourceError(Error):
    """RESOURCE_EXHAUSTED: a limit of the daemon or of this process is reached."""


class UnimplementedError(Error):
    """UNIMPLEMENTED: this daemon, device or version cannot do it."""


class ServiceLost(Error):
    """UNAVAILABLE: the daemon is gone, starting or draining. Calls of `fallback="torch"` do without it."""


class StreamFailed(Error):
    """An earlier call that was ordered on this CUDA stream failed, or the daemon went away under it: the content of its
    output is undefined. Raised once, by the next call on that stream, by Client.check or by the client's end (close,
    with); `code` is the call's."""


_CLASSES: dict[int, type[Error]] = {
    _mlacat.STATUS["INVALID_ARGUMENT"]: ArgumentError,
    _mlacat.STATUS["FAILED_PRECONDITION"]: PreconditionError,
    _mlacat.STATUS["RESOURCE_EXHAUSTED"]: ResourceError,
    _mlacat.STATUS["UNIMPLEMENTED"]: UnimplementedError,
    _mlacat.STATUS["UNAVAILABLE"]: ServiceLost,
}
_KINDS: dict[str, type[Error]] = {"stream": StreamFailed, "capture": CaptureError, "type": ArgumentTypeError}


def make(kind: str, code: int, scope: int, message: str) -> Error:
    """For the extension: the exception of a status. `kind` tells classes apart that share a code."""
    cls = _KINDS.get(kind) or _CLASSES.get(code, Error)
    return cls(message, code, _SCOPE_NAMES.get(scope, "CALL"))
