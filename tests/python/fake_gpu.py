# SPDX-License-Identifier: Apache-2.0
"""The fake CUDA driver of tests/support/fake_cuda, in this process. Its device memory can be read and written here."""

from __future__ import annotations

import ctypes as c

import dlpack


class FakeGpu:
    def __init__(self) -> None:
        self._driver = c.CDLL("libcuda.so.1", mode=c.RTLD_GLOBAL)
        self._context = c.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", c.byref(self._context), 0)
        self.enter_thread()

    def enter_thread(self) -> None:
        self.call("cuCtxSetCurrent", self._context)

    def has(self, name: str) -> bool:
        return hasattr(self._driver, f"fake_{name}")

    def call(self, name: str, *arguments: object) -> None:
        result = getattr(self._driver, f"fake_{name}")(*arguments)
        assert result == 0, (name, result)

    def behave(self, words: str | None) -> None:
        self._driver.fake_cuda_behave(None if words is None else words.encode())

    def alloc(self, size: int) -> int:
        address = c.c_uint64()
        self.call("cuMemAlloc", c.byref(address), c.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        self.call("cuMemFree", c.c_uint64(address))

    def stream(self) -> int:
        stream = c.c_void_p()
        self.call("cuStreamCreate", c.byref(stream), 1)
        return int(stream.value or 0)

    def synchronize(self, stream: int) -> None:
        self.call("cuStreamSynchronize", c.c_void_p(stream))

    def capture(self, stream: int, capturing: bool) -> None:
        self._driver.fake_cuda_capture(c.c_void_p(stream), c.c_bool(capturing))


class GrowingSegment:
    """Reserved addresses that chunks are mapped into one after the other, as PyTorch's expandable segments are."""

    CHUNK = 2 << 20

    def __init__(self, gpu: FakeGpu, most: int) -> None:
        self.gpu, self.nr = gpu, 0
        base = c.c_uint64()
        gpu.call("cuMemAddressReserve", c.byref(base), c.c_size_t(most * self.CHUNK), c.c_size_t(0), c.c_uint64(0),
                 c.c_ulonglong(0))
        self.base = base.value

    def grow(self) -> None:
        chunk = c.c_uint64()
        # CUmemAllocationProp: pinned, exported as a descriptor, on device 0; CUmemAccessDesc: read and write there.
        properties = (c.c_int * 8)(1, 1, 1, 0)
        access = (c.c_int * 3)(1, 0, 3)
        at = c.c_uint64(self.base + self.nr * self.CHUNK)
        size = c.c_size_t(self.CHUNK)
        self.gpu.call("cuMemCreate", c.byref(chunk), size, properties, c.c_ulonglong(0))
        self.gpu.call("cuMemMap", at, size, c.c_size_t(0), chunk, c.c_ulonglong(0))
        self.gpu.call("cuMemSetAccess", at, size, access, c.c_size_t(1))
        self.gpu.call("cuMemRelease", chunk)
        self.nr += 1

    def shrink(self) -> None:
        self.nr -= 1
        self.gpu.call("cuMemUnmap", c.c_uint64(self.base + self.nr * self.CHUNK), c.c_size_t(self.CHUNK))


class Trio:
    """The arguments of concat_mla_k in one allocation."""

    N, H, P, R = 6, 4, 128, 64

    def __init__(self, base: int, make=dlpack.Array) -> None:
        n, h, p, r = self.N, self.H, self.P, self.R
        self.sizes = [2 * n * h * (p + r), 2 * n * h * p, 2 * n * r]
        self.at = [base + 4096, base + 4096 + self.sizes[0], base + 4096 + self.sizes[0] + self.sizes[1]]
        shapes = ((n, h, p + r), (n, h, p), (n, 1, r))
        self.arrays = [make(at, shape, device=(dlpack.CUDA, 0)) for at, shape in zip(self.at, shapes)]
        for at, size, byte in zip(self.at, self.sizes, (0, 5, 6)):
            c.memset(at, byte, size)

    BYTES = 65536
    K_MIDDLE = 4096 + N * H * (P + R)  # bytes from the base to the middle of k

    def is_right(self) -> bool:
        row = b"\5" * 2 * self.P + b"\6" * 2 * self.R
        return c.string_at(self.at[0], self.sizes[0]) == row * (self.N * self.H)

    def clear(self) -> None:
        c.memset(self.at[0], 0, self.sizes[0])


class LongTrio(Trio):
    """Of which k has 74 chunks of a GrowingSegment, and k_nope 49: more than one registration takes."""

    N = 100_000
    CHUNKS = 130
