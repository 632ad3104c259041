# SPDX-License-Identifier: Apache-2.0
"""As much of mlacat.h as the benchmarks need, by ctypes. Every failure is a MlacatError with the library's message."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Sequence

OPS = {"concat_mla_k": 1, "concat_mla_absorb_q": 2}
DTYPES = {"bf16": 1, "fp16": 2, "fp8_e4m3": 3, "fp8_e5m2": 4, "fp32": 5}


class MlacatError(RuntimeError):
    """A function of the library returned something else than MLACAT_OK."""


class _ConnectOptions(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("socket", c_char_p),
        ("name", c_char_p),
        ("connect_timeout_ms", c_uint32),
        ("reconnect_timeout_ms", c_uint32),
        ("dispatch", c_int),
    ]


class _ServerInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("version", c_char * 64),
        ("pid", c_uint32),
        ("boot_id", ctypes.c_uint8 * 16),
        ("devices", c_uint32),
        ("max_streams", c_uint32),
        ("max_buffers", c_uint32),
        ("max_mapped_bytes", c_uint64),
        ("max_stream_calls", c_uint32),
        ("max_calls", c_uint32),
        ("reconnects", c_uint32),
    ]


class _DeviceInfo(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t),
        ("uuid", c_char * 64),
        ("kind", c_char * 16),
        ("name", c_char * 128),
        ("available", c_uint32),
        ("reason", c_char * 240),
        ("workers", c_uint32),
    ]


class Tensor(ctypes.Structure):
    """struct mlacat_tensor; strides in elements."""

    _fields_ = [
        ("buffer", c_void_p),
        ("offset_bytes", c_uint64),
        ("shape", c_uint64 * 3),
        ("strides", c_int64 * 3),
    ]


class Call(ctypes.Structure):
    """struct mlacat_call, up to the members that are in use here."""

    _fields_ = [
        ("size", c_size_t),
        ("op", c_int),
        ("dtype", c_int),
        ("operand", Tensor * 3),
        ("deadline_us", c_uint64),
        ("done", c_void_p),
        ("user", c_void_p),
    ]


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "mlacat_error_message": (c_char_p, []),
    "mlacat_version": (c_char_p, []),
    "mlacat_connect": (c_int, [POINTER(_ConnectOptions), POINTER(c_void_p)]),
    "mlacat_disconnect": (None, [c_void_p]),
    "mlacat_server_info": (c_int, [c_void_p, POINTER(_ServerInfo)]),
    "mlacat_device_info": (c_int, [c_void_p, c_uint32, POINTER(_DeviceInfo)]),
    "mlacat_buffer_alloc": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(c_void_p)]),
    "mlacat_buffer_register_ptr": (c_int, [c_void_p, c_void_p, c_size_t, POINTER(c_void_p)]),
    "mlacat_buffer_data": (c_void_p, [c_void_p]),
    "mlacat_buffer_release": (None, [c_void_p]),
    "mlacat_stream_open": (c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "mlacat_stream_close": (None, [c_void_p]),
    "mlacat_submit_batch": (c_int, [c_void_p, POINTER(Call), c_size_t, POINTER(c_uint64), POINTER(c_size_t)]),
    "mlacat_wait": (c_int, [c_void_p, c_uint64, c_int64, c_void_p]),
}


@dataclass(frozen=True)
class Device:
    """What the daemon says about one of its devices."""

    uuid: str
    kind: str
    name: str
    available: bool
    reason: str


def contiguous(buffer: int, offset_bytes: int, shape: Sequence[int]) -> Tensor:
    """A row-major tensor of three dimensions without gaps."""
    _, d1, d2 = shape
    return Tensor(buffer, offset_bytes, (c_uint64 * 3)(*shape), (c_int64 * 3)(d1 * d2, d2, 1))


class Client:
    """A connection. What was registered or opened through it is gone after close()."""

    def __init__(self, library: str, socket: str | None, name: str) -> None:
        self._lib = ctypes.CDLL(library)
        for function, (result, arguments) in _PROTOTYPES.items():
            getattr(self._lib, function).restype = result
            getattr(self._lib, function).argtypes = arguments
        options = _ConnectOptions(ctypes.sizeof(_ConnectOptions), socket.encode() if socket else None, name.encode())
        self._client = c_void_p()
        self._check(self._lib.mlacat_connect(byref(options), byref(self._client)))

    def close(self) -> None:
        """Ends the connection; a second time does nothing."""
        self._lib.mlacat_disconnect(self._client)
        self._client = c_void_p()

    def _check(self, status: int) -> None:
        if status != 0:
            raise MlacatError(self._lib.mlacat_error_message().decode())

    def version(self) -> str:
        """Of the library."""
        return self._lib.mlacat_version().decode()

    def devices(self) -> list[Device]:
        """All that the daemon serves, or would like to."""
        server = _ServerInfo(ctypes.sizeof(_ServerInfo))
        self._check(self._lib.mlacat_server_info(self._client, byref(server)))
        found = []
        for index in range(server.devices):
            info = _DeviceInfo(ctypes.sizeof(_DeviceInfo))
            self._check(self._lib.mlacat_device_info(self._client, index, byref(info)))
            found.append(
                Device(
                    info.uuid.decode(),
                    info.kind.decode(),
                    info.name.decode(),
                    info.available != 0,
                    info.reason.decode(),
                )
            )
        return found

    def alloc(self, device: str, size: int) -> tuple[int, memoryview]:
        """A buffer of the host device, and its bytes here."""
        buffer = c_void_p()
        self._check(self._lib.mlacat_buffer_alloc(self._client, device.encode(), size, byref(buffer)))
        data = (c_char * size).from_address(self._lib.mlacat_buffer_data(buffer))
        return buffer.value or 0, memoryview(data).cast("B")

    def register(self, pointer: int, size: int) -> int:
        """A buffer of GPU memory of this process."""
        buffer = c_void_p()
        self._check(self._lib.mlacat_buffer_register_ptr(self._client, pointer, size, byref(buffer)))
        return buffer.value or 0

    def release(self, buffer: int) -> None:
        """Gives a buffer back."""
        self._lib.mlacat_buffer_release(buffer)

    def open_stream(self, device: str) -> int:
        """A stream on the device of that UUID."""
        stream = c_void_p()
        self._check(self._lib.mlacat_stream_open(self._client, device.encode(), byref(stream)))
        return stream.value or 0

    def close_stream(self, stream: int) -> None:
        """Waits for its calls."""
        self._lib.mlacat_stream_close(stream)

    def submit(self, stream: int, calls: ctypes.Array[Call], ids: ctypes.Array[c_uint64]) -> None:
        """Submits all of `calls`; their ids are then in `ids`."""
        self._check(self._lib.mlacat_submit_batch(stream, calls, len(calls), ids, None))

    def wait(self, stream: int, call_id: int) -> None:
        """Waits for a call to end, and raises if it failed."""
        self._check(self._lib.mlacat_wait(stream, call_id, -1, None))


def make_call(op: str, dtype: str, operands: Sequence[Tensor]) -> Call:
    """Output, first and second input."""
    return Call(ctypes.sizeof(Call), OPS[op], DTYPES[dtype], (Tensor * 3)(*operands))
