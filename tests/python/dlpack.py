# SPDX-License-Identifier: Apache-2.0
"""Arrays of an imaginary library that speaks DLPack, on memory given by address."""

from __future__ import annotations

import ctypes as c

CPU, CUDA = 1, 2
CODES = {"bf16": (4, 16), "fp16": (2, 16), "fp32": (2, 32), "fp8_e4m3": (10, 8), "fp8_e5m2": (12, 8), "int32": (0, 32)}


class Tensor(c.Structure):
    _fields_ = [
        ("data", c.c_void_p),
        ("device_type", c.c_int32),
        ("device_id", c.c_int32),
        ("dims", c.c_int32),
        ("code", c.c_uint8),
        ("bits", c.c_uint8),
        ("lanes", c.c_uint16),
        ("shape", c.POINTER(c.c_int64)),
        ("strides", c.POINTER(c.c_int64)),
        ("byte_offset", c.c_uint64),
    ]


class Managed(c.Structure):
    pass


class Versioned(c.Structure):
    pass


Deleter = c.CFUNCTYPE(None, c.c_void_p)
Managed._fields_ = [("tensor", Tensor), ("context", c.c_void_p), ("deleter", Deleter)]
Versioned._fields_ = [
    ("major", c.c_uint32),
    ("minor", c.c_uint32),
    ("context", c.c_void_p),
    ("deleter", Deleter),
    ("flags", c.c_uint64),
    ("tensor", Tensor),
]
_new_capsule = c.pythonapi.PyCapsule_New
_new_capsule.restype = c.py_object
_new_capsule.argtypes = [c.c_void_p, c.c_char_p, c.c_void_p]


class Array:
    """version: 0 for unversioned capsules, else the major version. strides None: the capsule has none."""

    def __init__(self, address, shape, strides=None, dtype="bf16", device=(CPU, 0), version=0, flags=0):
        self.device, self.version, self.flags = device, version, flags
        self.shape = shape
        self.streams = []  # what consumers asked for
        self.lent = 0  # capsules taken and not given back
        self._managed = []
        self._deleter = Deleter(self._give_back)
        self._shape = (c.c_int64 * len(shape))(*shape)
        self._strides = None if strides is None else (c.c_int64 * len(shape))(*strides)
        code, bits = CODES[dtype]
        offset = 16  # so that nobody forgets byte_offset
        self.tensor = Tensor(
            address - offset, *device, len(shape), code, bits, 1, self._shape, self._strides, offset
        )

    def _give_back(self, _):
        self.lent -= 1

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, stream=None, **newer):
        if newer and self.version == 0:
            raise TypeError("max_version came later")
        self.streams.append(stream)
        self.lent += 1
        if self.version == 0:
            self._managed.append(Managed(self.tensor, None, self._deleter))
            return _new_capsule(c.addressof(self._managed[-1]), b"dltensor", None)
        self._managed.append(Versioned(self.version, 1, None, self._deleter, self.flags, self.tensor))
        return _new_capsule(c.addressof(self._managed[-1]), b"dltensor_versioned", None)


class Exchange(c.Structure):
    _fields_ = [
        ("major", c.c_uint32),
        ("minor", c.c_uint32),
        ("older", c.c_void_p),
        ("allocate", c.c_void_p),
        ("managed_of", c.c_void_p),
        ("object_of", c.c_void_p),
        ("tensor_of", c.PYFUNCTYPE(c.c_int, c.py_object, c.POINTER(Tensor))),
        ("current_stream", c.PYFUNCTYPE(c.c_int, c.c_int32, c.c_int32, c.POINTER(c.c_void_p))),
    ]


def exchange_type(stream=lambda device: 0, major=1):
    """A subclass of Array with DLPack's exchange table; stream(device id) is its current stream."""

    def tensor_of(array, out):
        array.reads += 1
        out[0] = array.tensor
        return 0

    def current_stream(_, device_id, out):
        out[0] = stream(device_id)
        return 0

    fields = dict(Exchange._fields_)
    table = Exchange(major, 3, None, None, None, None, fields["tensor_of"](tensor_of),
                     fields["current_stream"](current_stream))
    capsule = _new_capsule(c.addressof(table), b"dlpack_exchange_api", None)
    return type("Exchanged", (Array,), {"__dlpack_c_exchange_api__": capsule, "table": table, "reads": 0})
