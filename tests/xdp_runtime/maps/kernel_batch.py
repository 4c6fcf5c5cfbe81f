"""The kernel's batch commands on a map: bpf(BPF_MAP_*_BATCH)."""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple, Protocol

from xdp_runtime import bpf_syscall as sys_bpf
from xdp_runtime.object import MapSpec

LOOKUP, LOOKUP_AND_DELETE, UPDATE, DELETE = 24, 25, 26, 27
_BATCH_AT, _COUNT_AT = 56, 32
_TOKEN_BYTES = 512


class Described(Protocol):
    """A KernelMap, or as much of one."""

    fd: int
    spec: MapSpec

    @property
    def is_per_cpu(self) -> bool: ...


class Answer(NamedTuple):
    """`error` is the errno or 0; keys and values as many as `count` says."""

    error: int
    count: int  # type: ignore[assignment]
    token: bytes
    keys: list[bytes]
    values: list[bytes]


class _Command(int):
    name = "BPF_MAP_*_BATCH"


def stride(one: Described) -> int:
    """Bytes of an entry's value as the system call has it."""
    size = one.spec.value_size
    return ((size + 7) & ~7) * sys_bpf.possible_cpus() if one.is_per_cpu else size


def call(one: Described, command: int, count: int, token: bytes | None = None, keys: bytes = b"",
         values: bytes = b"", elem_flags: int = 0, flags: int = 0) -> Answer:
    """One system call.  `keys` and `values` are what it reads, or nothing where it writes."""
    size, width = one.spec.key_size, stride(one)
    key_room = ctypes.create_string_buffer(keys.ljust(size * count + 1, b"\0"))
    value_room = ctypes.create_string_buffer(values.ljust(width * count + 1, b"\0"))
    after = ctypes.create_string_buffer(_TOKEN_BYTES)
    before = ctypes.create_string_buffer(token, len(token)) if token is not None else None
    attr = bytearray(struct.pack(
        "=4Q2I2Q", ctypes.addressof(before) if before is not None else 0,
        ctypes.addressof(after), ctypes.addressof(key_room), ctypes.addressof(value_room),
        count, one.fd, elem_flags, flags))
    error = 0
    try:
        sys_bpf.bpf(_Command(command), attr)  # type: ignore[arg-type]
    except OSError as refused:
        error = refused.errno or 0
    done = struct.unpack_from("=I", attr, _COUNT_AT)[0]
    return Answer(error, done, after.raw,
                  [key_room.raw[at:at + size] for at in range(0, size * done, size or 1)],
                  [value_room.raw[at:at + width] for at in range(0, width * done, width or 1)])
