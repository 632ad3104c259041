# SPDX-License-Identifier: Apache-2.0
"""A client of the host device that was written from the files of proto/ alone, and shares nothing with libmlacat.

It takes field numbers, codes and offsets from those files as it starts. test_second_client.py runs it.
"""
import collections
import ctypes
import fcntl
import itertools
import mmap
import os
import pathlib
import re
import socket
import struct
from types import SimpleNamespace as Values

PROTO = pathlib.Path(__file__).parents[2] / "proto"
LIMIT_S = 20  # for what should take milliseconds


def find(name, pattern):
    return re.findall(pattern, (PROTO / name).read_text())


STATUS = {int(number): name for name, number in find("mlacat_status.def", r"MLACAT_STATUS\((\w+), (\d+),")}
SCOPE = {int(number): name for name, number in find("mlacat_status.def", r"MLACAT_SCOPE\((\w+), (\d+),")}
DTYPES = {int(number): int(size) for number, size in find("mlacat_dtypes.def", r"MLACAT_DTYPE\((\d+), .*, (\d+)\)")}
OPS = {int(number): rows for number, rows in find("mlacat_ops.def", r"MLACAT_OP\((\d+), .*(BROADCAST|PER_ROW)")}
FLAG = {name: 1 << int(bit) for name, bit in find("mlacat_abi.h", r"MLACAT_RING_SUBMIT_(\w+) \(1u << (\d+)\)")}
WORDS = {name: (page, int(at)) for page, name, at in
         find("mlacat_abi.h", r"offsetof\(struct mlacat_ring_(client|daemon), (\w+)\) == (\d+)")}
SUBMISSION, COMPLETION, MESSAGE_BYTES = struct.Struct("=QHHIQQ6I3Q4Q6q32x"), struct.Struct("=QHHIQQ"), 256
LOW = (1 << 32) - 1  # what an index has of a number that counts up for ever
REQUEST = 1 << 40  # a call_id for requests to cancel, which Stats does not count

# ------------------------------------------------------------------------------------------------------- protobuf
PROTOCOL = re.sub(r"oneof \w+ \{([^}]*)\}", r"\1", re.sub(r"//.*", "", (PROTO / "mlacat.proto").read_text()))
MESSAGES = {name: {int(number): (field, kind, bool(repeated)) for repeated, kind, field, number in
                   re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body)}
            for name, body in re.findall(r"message (\w+) \{([^}]*)\}", PROTOCOL)}
NUMBERS = ("bool", "uint32", "uint64", "sint64")
DEFAULT = {**dict.fromkeys(NUMBERS, 0), "string": "", "bytes": b""}


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def encode(message, values):
    out = b""
    for number, (field, kind, repeated) in MESSAGES[message].items():
        items = values.get(field, ()) if repeated else [values[field]] if field in values else ()
        if kind in NUMBERS:
            texts = [varint((v << 1) ^ (v >> 63) if kind == "sint64" else v) for v in items]
            if not repeated:
                out += b"".join(varint(number << 3) + text for text in texts)
                continue
            texts = [b"".join(texts)] if texts else []
        else:
            texts = [encode(kind, v) if kind in MESSAGES else v.encode() if kind == "string" else v for v in items]
        out += b"".join(varint(number << 3 | 2) + varint(len(text)) + text for text in texts)
    return out


def take_varint(data):
    byte = next(data)
    return byte if byte < 128 else byte & 127 | take_varint(data) << 7


def decode(message, packet):
    values = {field: [] if repeated else DEFAULT.get(kind) for field, kind, repeated in MESSAGES[message].values()}
    data = iter(packet)
    for first in data:
        tag, value = take_varint(itertools.chain([first], data)), take_varint(data)
        if tag & 7 == 2:
            value = bytes(itertools.islice(data, value))
        if tag >> 3 in MESSAGES[message]:
            field, kind, repeated = MESSAGES[message][tag >> 3]
            value = decode(kind, value) if kind in MESSAGES else value.decode() if kind == "string" else value
            values[field] = values[field] + [value] if repeated else value
    return Values(**values)


# ------------------------------------------------------------------------------------------------------- messages
outcomes = collections.Counter()  # of all calls, as Stats counts them


def outcome(code, scope):
    return "OK" if code == 0 else STATUS[code] if SCOPE[scope] == "CALL" else f"{STATUS[code]} {SCOPE[scope]}"


def told(status):
    return outcome(status.code, status.scope) if status else "OK"


class Connection:
    def __init__(self, path, hello=True):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(path)
        self.ids, self.replies, self.ended, self.last_words = itertools.count(1), {}, [], None
        if hello:
            self.welcome = self.ask(hello={"protocol_version": 1, "client_name": "second"})

    def send(self, fds=(), **body):
        request_id = next(self.ids)
        socket.send_fds(self.socket, [encode("Envelope", {"request_id": request_id, **body})], fds)
        return request_id

    def receive(self):
        packet, fds, _, _ = socket.recv_fds(self.socket, 65536, 64)
        if packet:
            envelope = vars(decode("Envelope", packet))
            request_id = envelope.pop("request_id")
            body = next(value for value in envelope.values() if value is not None)
            if envelope["completions"]:
                self.ended += [(call.call_id, told(call.status)) for call in body.completions]
                outcomes.update(call.status.code if call.status else 0 for call in body.completions)
            elif request_id == 0:
                self.last_words = body.status
            else:
                self.replies[request_id] = Values(**vars(body), fds=fds)
        return bool(packet)

    def reply(self, request_id):
        while request_id not in self.replies:
            assert self.receive(), f"the connection ended: {self.last_words}"
        return self.replies.pop(request_id)

    def ask(self, fds=(), **body):
        return self.reply(self.send(fds, **body))

    def end(self):
        while self.receive():
            pass
        return told(self.last_words)


class Stream:
    """A stream of messages. Ring has the same functions."""
    def __init__(self, connection):
        self.connection, self.ref = connection, connection.ask(open_stream={"device_uuid": "host"}).stream

    def submit(self, *calls):  # each: call_id, Call, and a dict of what else there is to say
        calls = [{"call_id": call_id, **call.message(), **dict(*more)} for call_id, call, *more in calls]
        self.connection.send(submit={"stream": vars(self.ref), "calls": calls})

    def wait(self, count):
        while len(self.connection.ended) < count:
            assert self.connection.receive(), f"the connection ended: {self.connection.last_words}"
        ended, self.connection.ended = self.connection.ended, []
        return ended


class Memory:
    def __init__(self, connection, size=4096, seals=fcntl.F_SEAL_SHRINK):
        fd = os.memfd_create("second", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        self.bytes = mmap.mmap(fd, size)
        memory = {"host": {"fd": 0, "size_bytes": size}}
        self.registered = connection.ask([fd], register_buffer={"device_uuid": "host", "memory": memory})
        os.close(fd)


class Call:
    """operands: (memory, offset in bytes, two strides). dims: dim0, dim1, first width, second width."""
    def __init__(self, op, dtype, dims, operands):
        self.op, self.dtype, self.dims, self.operands = op, dtype, dims, operands
        rows = 1 if OPS.get(op) == "BROADCAST" else dims[1]
        self.shapes = (*dims[:2], dims[2] + dims[3]), dims[:3], (dims[0], rows, dims[3])
        self.buffers = [vars(memory.registered.buffer) for memory, _, _ in operands]

    def message(self):
        operands = [{"buffer": buffer, "offset_bytes": offset, "shape": shape, "strides": (*strides, 1)}
                    for (_, offset, strides), shape, buffer in zip(self.operands, self.shapes, self.buffers)]
        return {"op": self.op, "dtype": self.dtype, "operands": operands}

    def entry(self):
        return [self.op, self.dtype], [*[n for buffer in self.buffers for n in (buffer["id"], buffer["generation"])],
                                       *[offset for _, offset, _ in self.operands], *self.dims,
                                       *[stride for _, _, strides in self.operands for stride in strides]]

    def place(self, operand, i, j):
        (_, offset, strides), size = self.operands[operand], DTYPES[self.dtype]
        at = offset + (i * strides[0] + j % self.shapes[operand][1] * strides[1]) * size
        return slice(at, at + self.shapes[operand][2] * size)

    def expected(self):
        """All bytes of the output's memory when the call has run."""
        out, first, second = (memory.bytes for memory, _, _ in self.operands)
        result = bytearray(out)
        for i, j in itertools.product(range(self.dims[0]), range(self.dims[1])):
            result[self.place(0, i, j)] = first[self.place(1, i, j)] + second[self.place(2, i, j)]
        return result


# ------------------------------------------------------------------------------------------------------- rings
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
SYS_FUTEX, SYS_MEMBARRIER = {"x86_64": (202, 324), "aarch64": (98, 283)}[os.uname().machine]
FUTEX_WAIT, MEMBARRIER_CMD_GLOBAL_EXPEDITED, TIMED_OUT = 0, 2, 110


def full_fence():
    """Python has none; this system call has one for whoever makes it."""
    failed = libc.syscall(SYS_MEMBARRIER, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0)
    assert not failed, f"membarrier: {os.strerror(ctypes.get_errno())}"


class Rings:
    def __init__(self, connection):
        self.layout = connection.ask(open_rings={})
        size, (client_fd, daemon_fd) = self.layout.daemon_bytes, self.layout.fds
        self.client = memoryview(mmap.mmap(client_fd, self.layout.client_bytes))
        self.daemon_address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, daemon_fd, 0)
        self.daemon = memoryview((ctypes.c_char * size).from_address(self.daemon_address)).cast("B")


class Ring:
    def __init__(self, connection, rings):
        self.rings, self.layout = rings, rings.layout
        self.opened = connection.ask(open_stream={"device_uuid": "host", "ring": True})
        self.sequence = self.read = self.opened.sequence  # of the last entry written, and of completions read

    def word(self, name):
        page, at = WORDS[name]
        at += self.opened.ring * getattr(self.layout, page + "_stride")
        wide = name in ("ready", "done", "fence")
        return getattr(self.rings, page)[at:at + (8 if wide else 4)].cast("Q" if wide else "I")

    def load(self, name):
        value = self.word(name)[0]
        full_fence()  # acquire
        return value

    def store(self, name, value):
        full_fence()  # release
        self.word(name)[0] = value
        full_fence()  # for who looks next whether the other side sleeps

    def place(self, array, index, size):
        entries = self.layout.entries
        return getattr(self.layout, array + "_offset") + (self.opened.ring * entries + (index & entries - 1)) * size

    def write(self, call_id, call=None, flags=0, ready=0, deadline_us=0):
        op, rest = call.entry() if call else ([0, 0], [0] * 19)
        at = self.place("submissions", self.sequence, SUBMISSION.size)
        SUBMISSION.pack_into(self.rings.client, at, call_id, *op, flags, ready, deadline_us, *rest)
        self.sequence += 1

    def publish(self):
        self.store("submit_tail", self.sequence & LOW)
        if self.word("sleeping")[0]:
            os.write(self.opened.fds[0], struct.pack("=Q", 1))

    def submit(self, *calls):
        for call_id, call, *more in calls:
            self.write(call_id, call, **dict(*more))
        self.publish()

    def completions(self):
        tail, ended = self.load("complete_tail"), []
        while self.read & LOW != tail:
            at = self.place("completions", self.read, COMPLETION.size)
            call_id, code, scope, *_ = COMPLETION.unpack_from(self.rings.daemon, at)
            assert not code or self.rings.daemon[self.place("messages", self.read, MESSAGE_BYTES)], "no text"
            ended.append((call_id, outcome(code, scope)))
            outcomes[code] += call_id < REQUEST
            self.read += 1
        self.store("complete_head", self.read & LOW)
        return ended

    def sleep(self):
        """Until there are completions. Here nothing else ends the wait, so the time limit can be long."""
        self.store("waiting", 1)
        at = self.rings.daemon_address + self.opened.ring * self.layout.daemon_stride + WORDS["complete_tail"][1]
        timeout, seen = struct.pack("qq", LIMIT_S, 0), ctypes.c_uint(self.read & LOW)
        failed = libc.syscall(SYS_FUTEX, ctypes.c_void_p(at), FUTEX_WAIT, seen, timeout, None, 0)
        assert not failed or ctypes.get_errno() != TIMED_OUT, "nobody woke the client"
        self.store("waiting", 0)

    def wait(self, count):
        ended = self.completions()
        while len(ended) < count:
            self.sleep()
            ended += self.completions()
        return ended
