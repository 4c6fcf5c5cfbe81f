"""A map here and one in the kernel, and what may be done to both: system calls, and a program.

The program does what its packet says, so that one load serves a whole trace:

    0 u32 operation   8 u64 flags (of lookup_percpu: the CPU)   16 u64 result   24 key   then value

and leaves the result, and the value of a lookup, in the packet.  An answer is (errno, what came
out); a program's result is a number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.xdp_runtime.verifier.btf_text import BtfBuilder
from xdp_runtime import asm
from xdp_runtime import bpf_syscall as sys_bpf
from xdp_runtime.bpf_syscall import Cmd
from xdp_runtime.btf import Btf
from xdp_runtime.isa import encode
from xdp_runtime.kernel import load_raw
from xdp_runtime.kernel_calls import for_kernel
from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load

CPUS = sys_bpf.possible_cpus()
KEY_AT, RESULT_AT = 24, 16
QUEUES = (MapType.QUEUE, MapType.STACK)
KEYLESS = (*QUEUES, MapType.BLOOM_FILTER)
PER_CPU = (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
LOCKABLE = (MapType.HASH, MapType.ARRAY)
LOCK_AT, LOCKED_BYTES = 4, 16
_LOCKED = "struct value { u32 first; struct bpf_spin_lock lock; u64 count; }"
Answer = tuple[int, Any]

_CALLS = {  # what it needs in r2 .. r4, and whether r0 is a value's address
    "lookup": ("    r2 = r6\n    r2 += {key}\n", True),
    "update": ("    r2 = r6\n    r2 += {key}\n    r3 = r6\n    r3 += {value}\n    r4 = r8\n",
               False),
    "delete": ("    r2 = r6\n    r2 += {key}\n", False),
    "push": ("    r2 = r6\n    r2 += {value}\n    r3 = r8\n", False),
    "pop": ("    r2 = r10\n    r2 += -304\n", False),  # not into a packet
    "peek": ("    r2 = r10\n    r2 += -304\n", False),
    "lookup_percpu": ("    r2 = r6\n    r2 += {key}\n    r3 = r8\n", True),
}
OPERATIONS = list(_CALLS)


def program_operations(spec: MapSpec) -> list[str]:
    """Of a program that the verifier lets do all it can with this map."""
    reads, writes = not spec.flags & MapFlag.WRONLY_PROG, not spec.flags & MapFlag.RDONLY_PROG
    if spec.type in KEYLESS:
        names = ["push"] * writes + ["peek"] * reads
        return names + ["pop"] * (writes and reads and spec.type in QUEUES)
    names = ["lookup"] * reads + ["update", "delete"] * writes
    return names + ["lookup_percpu"] * (reads and spec.type in PER_CPU)


def _copy(source: str, source_at: int, to: str, at: int, places: Iterable[int]) -> str:
    return "".join(f"    r1 = *(u8 *)({source} {source_at + n:+})\n"
                   f"    *(u8 *)({to} {at + n:+}) = r1\n" for n in places).replace(
        " +", " + ").replace(" -", " - ")


def _text(spec: MapSpec) -> str:
    value_at = KEY_AT + (spec.key_size + 7 & ~7)
    out = f"""
    r6 = *(u32 *)(r1 + 0)
    r7 = *(u32 *)(r1 + 4)
    r2 = r6
    r2 += {value_at + spec.value_size}
    if r2 > r7 goto end
    r9 = *(u32 *)(r6 + 0)
    r8 = *(u64 *)(r6 + 8)
"""
    hidden = range(LOCK_AT, LOCK_AT + 4) if spec.lock_at >= 0 else ()
    for name in program_operations(spec):
        arguments, gives_value = _CALLS[name]
        out += f"    if r9 != {OPERATIONS.index(name)} goto not_{name}\n"
        on_stack = name in ("pop", "peek")
        if on_stack:
            out += _copy("r6", value_at, "r10", -304, range(spec.value_size))
        out += "    r1 = map[m] ll\n"
        out += arguments.format(key=KEY_AT, value=value_at)
        out += f"    call bpf_map_{name}_elem\n"
        if gives_value:
            out += f"    if r0 == 0 goto store_{name}\n"
            out += _copy("r0", 0, "r6", value_at, set(range(spec.value_size)) - set(hidden))
            out += "    r0 = 1\n"
        elif on_stack:
            out += _copy("r10", -304, "r6", value_at, range(spec.value_size))
        out += f"store_{name}:\n    *(u64 *)(r6 + {RESULT_AT}) = r0\n    goto end\nnot_{name}:\n"
    return out + "end:\n    r0 = 2\n    exit\n"


def with_lock(spec: MapSpec) -> tuple[MapSpec, Btf]:
    """The same map with a lock in its values, and the types that say so."""
    types = BtfBuilder()
    value, key = types.struct(_LOCKED), types.base("u32")
    made = MapSpec("m", spec.type, 4, LOCKED_BYTES, spec.max_entries, spec.flags, lock_at=LOCK_AT,
                   key_type_id=key, value_type_id=value)
    return made, Btf.parse(types.encode())


def create(spec: MapSpec, types: Btf | None = None) -> int:
    """The kernel's map: its file descriptor.  Raises OSError."""
    btf = sys_bpf.btf_load(types.raw) if types is not None else 0
    try:
        attr = bytearray(struct.pack(
            "=7I16s6IQ", spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags,
            0, spec.numa_node, b"m", 0, btf, spec.key_type_id if btf else 0,
            spec.value_type_id if btf else 0, 0, 0, spec.map_extra))
        return sys_bpf.bpf(Cmd.MAP_CREATE, attr)
    finally:
        if btf:
            os.close(btf)


@dataclass
class Theirs:
    """System calls on the kernel's map."""

    fd: int
    spec: MapSpec

    @property
    def is_per_cpu(self) -> bool:
        return self.spec.type in PER_CPU

    @property
    def stride(self) -> int:
        size = self.spec.value_size
        return (size + 7) // 8 * 8 if self.is_per_cpu else size

    def call(self, command: Cmd, key: bytes | None, value: bytes | None = None,
             flags: int = 0) -> Answer:
        cpus = CPUS if self.is_per_cpu else 1
        room = max(self.stride * cpus, self.spec.key_size)
        size = self.spec.value_size
        given = b""
        if value is not None:
            parts = [value[at:at + size] for at in range(0, len(value), size or 1)]
            given = b"".join(part.ljust(self.stride, b"\0") for part in parts)
        into = ctypes.create_string_buffer(given, max(room, len(given), 1))
        asked = ctypes.create_string_buffer(key, max(len(key), 1)) if key else None
        attr = bytearray(struct.pack(
            "=I4xQQQ", self.fd, ctypes.addressof(asked) if asked is not None else 0,
            0 if command == Cmd.MAP_DELETE_ELEM else ctypes.addressof(into), flags))
        try:
            sys_bpf.bpf(command, attr)
        except OSError as error:
            return error.errno or 0, None
        raw = into.raw
        if command == Cmd.MAP_GET_NEXT_KEY:
            return 0, raw[:self.spec.key_size]
        if command in (Cmd.MAP_LOOKUP_ELEM, Cmd.MAP_LOOKUP_AND_DELETE_ELEM):
            return 0, b"".join(raw[cpu * self.stride:][:size] for cpu in range(cpus))
        return 0, None

    def freeze(self) -> Answer:
        try:
            sys_bpf.map_freeze(self.fd)
        except OSError as error:
            return error.errno or 0, None
        return 0, None


def answer(call: Callable[[], Any]) -> Answer:
    """What one of ours says, as the system call would."""
    try:
        found = call()
    except OSError as error:
        return error.errno or 0, None
    if isinstance(found, list):
        return 0, b"".join(found)
    return 0, found


def _or_missing(found: Answer) -> Answer:
    """None for what is not there is ENOENT."""
    return found if found != (0, None) else (errno.ENOENT, None)


@dataclass
class Pair:
    """One map twice: `ours` with the compiled program, `theirs` with the kernel's."""

    spec: MapSpec
    program: Program
    theirs: Theirs
    program_fd: int

    @property
    def ours(self) -> Map:
        return self.program.raw_maps["m"]

    def lookup(self, key: bytes, flags: int = 0) -> tuple[Answer, Answer]:
        one = self.ours
        if self.spec.type in QUEUES:
            mine = _or_missing(answer(one.peek))
        else:
            mine = _or_missing(answer(lambda: one.lookup(key, flags)))
        return mine, self.theirs.call(Cmd.MAP_LOOKUP_ELEM, key, flags=flags)

    def update(self, key: bytes, values: list[bytes], flags: int = 0) -> tuple[Answer, Answer]:
        """`values`: one a CPU, or one."""
        one = self.ours
        if self.spec.type in KEYLESS:
            mine = answer(lambda: one.push(values[0], flags))
        else:
            given = values if one.family.per_cpu else values[0]
            mine = answer(lambda: one.update(key, given, flags))
        return mine, self.theirs.call(Cmd.MAP_UPDATE_ELEM, key, b"".join(values), flags)

    def delete(self, key: bytes) -> tuple[Answer, Answer]:
        return (answer(lambda: self.ours.delete(key)),
                self.theirs.call(Cmd.MAP_DELETE_ELEM, key))

    def take(self, key: bytes, flags: int = 0) -> tuple[Answer, Answer]:
        one = self.ours
        if self.spec.type in KEYLESS:
            mine = _or_missing(answer(one.pop))
        else:
            mine = _or_missing(answer(lambda: one.lookup_and_delete(key, flags)))
        return mine, self.theirs.call(Cmd.MAP_LOOKUP_AND_DELETE_ELEM, key, flags=flags)

    def next_key(self, key: bytes | None) -> tuple[Answer, Answer]:
        return (_or_missing(answer(lambda: self.ours.next_key(key))),
                self.theirs.call(Cmd.MAP_GET_NEXT_KEY, key))

    def freeze(self) -> tuple[Answer, Answer]:
        return answer(self.ours.freeze), self.theirs.freeze()

    def run(self, cpu: int, operation: str, key: bytes, value: bytes,
            flags: int) -> tuple[bytes, bytes]:
        """The packet after the program, on this CPU and for this worker."""
        packet = struct.pack("<QQQ", OPERATIONS.index(operation), flags, 0)
        packet = (packet + key).ljust(KEY_AT + (len(key) + 7 & ~7), b"\0") + value
        packet = packet.ljust(64, b"\0")
        mine = self.program.run(packet, worker=cpu)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        try:
            there = sys_bpf.prog_test_run(self.program_fd, packet, out_bytes=len(packet))
        finally:
            os.sched_setaffinity(0, before)
        assert mine.retval == there.retval == 2
        return mine.data_out, there.data_out

    def contents(self) -> tuple[list[tuple[bytes, Answer]], list[tuple[bytes, Answer]]]:
        """All entries of both; in order where there is one."""
        if self.spec.type in KEYLESS or self.spec.flags & MapFlag.WRONLY:
            return [], []
        mine = [(key, answer(lambda: self.ours.lookup(key))) for key in self.ours]  # noqa: B023
        there = list(self._their_entries())
        if self.spec.type not in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE):
            mine, there = sorted(mine), sorted(there)
        return mine, there

    def _their_entries(self) -> Iterator[tuple[bytes, Answer]]:
        error, key = self.theirs.call(Cmd.MAP_GET_NEXT_KEY, None)
        while not error:
            yield key, self.theirs.call(Cmd.MAP_LOOKUP_ELEM, key)
            error, key = self.theirs.call(Cmd.MAP_GET_NEXT_KEY, key)


@contextmanager
def pair(spec: MapSpec, types: Btf | None = None, opt: int = 3) -> Iterator[Pair]:
    """Both maps and programs.  Raises OSError where the kernel refuses the map."""
    assert spec.type in FAMILIES
    fd = create(spec, types)
    program_fd = -1
    try:
        insns = asm.assemble(_text(spec), ["m"])
        program_fd = load_raw(encode(for_kernel(insns), [fd]))
        obj = Object("t", (ProgramSpec("t", "xdp", "xdp", insns),), (spec,), "GPL", btf=types)
        with load(obj, workers=CPUS, opt=opt) as program:
            yield Pair(spec, program, Theirs(fd, spec), program_fd)
    finally:
        os.close(fd)
        if program_fd >= 0:
            os.close(program_fd)
