"""The programs of bench.maps: an operation on a map, of each family, many times."""

from __future__ import annotations

import struct

from xdp_runtime import asm
from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.btf import Btf
from xdp_runtime.isa import MAX_TAIL_CALLS
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec

LOOPS, LANES = 64, 64
_LANE_BYTES = 128  # two cache lines: the next one may be fetched, too
KEYED = {MapType.HASH: 8, MapType.LRU_HASH: 8, MapType.PERCPU_HASH: 8,
          MapType.LRU_PERCPU_HASH: 8, MapType.ARRAY: 4, MapType.PERCPU_ARRAY: 4,
          MapType.LPM_TRIE: 8}
KEYLESS = (MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER)
FIXED = (MapType.ARRAY, MapType.PERCPU_ARRAY)
OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
TARGETS = (MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP)
TYPES = (*KEYED, *KEYLESS, MapType.PROG_ARRAY, MapType.RINGBUF, MapType.USER_RINGBUF,
         MapType.PERF_EVENT_ARRAY, *OF_MAPS, *TARGETS, MapType.ARENA)  # all but STACK_TRACE
INNER = MapSpec("i", MapType.ARRAY, 4, 8, 1)
RING_BYTES, RECORD_BYTES = 1 << 20, 16  # of a USER_RINGBUF: with its header
DRAINED = (1 << 16) // RECORD_BYTES

_HEAD = """
    *(u64 *)(r10 - 40) = r1
    r6 = *(u32 *)(r1 + 0)
    r2 = *(u32 *)(r1 + 4)
    r3 = r6
    r3 += 16
    if r3 > r2 goto out
    r1 = *(u32 *)(r6 + 0)
    *(u32 *)(r10 - 4) = r1
    r1 = map[lanes] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem
    if r0 == 0 goto out
    r7 = r0
    r8 = *(u64 *)(r7 + 0)
    r6 = 0
    r9 = {loops}
loop:
    r1 = 6364136223846793005 ll
    r8 *= r1
    r8 += 1442695041
    r1 = r8
    r1 >>= 33
    r2 = *(u64 *)(r7 + 16)
    r1 &= r2
    r2 = *(u64 *)(r7 + 8)
    r1 += r2
    {key}
    *(u64 *)(r10 - 24) = r8
"""
_TAIL = """
    r9 += -1
    if r9 != 0 goto loop
    *(u64 *)(r7 + 0) = r8
    *(u64 *)(r7 + 24) = r6
    r0 = 2
    exit
out:
    r0 = 0
    exit
"""
_PLAIN_KEY = "*(u64 *)(r10 - 16) = r1"
_PREFIX_KEY = "r1 = be32 r1\n    *(u32 *)(r10 - 12) = r1\n    *(u32 *)(r10 - 16) = 32"
_KEY = "r1 = map[m] ll\n    r2 = r10\n    r2 += -16\n"
_VALUE = "r1 = map[m] ll\n    r2 = r10\n    r2 += -24\n"
_LOOKUP = (_KEY + "call bpf_map_lookup_elem\n    if r0 == 0 goto none\n"
           "    r1 = *(u64 *)(r0 + 0)\n    r6 ^= r1\nnone:\n")
_UPDATE = _KEY + "r3 = r10\n    r3 += -24\n    r4 = 0\n    call bpf_map_update_elem\n"
_DELETE = _KEY + "call bpf_map_delete_elem\n"
_PUSH = _VALUE + "r3 = 0\n    call bpf_map_push_elem\n"
_POP = _VALUE + "call bpf_map_pop_elem\n"
_PEEK = _VALUE + "call bpf_map_peek_elem\n"
_FIND_MAP = (_KEY + "call bpf_map_lookup_elem\n    if r0 == 0 goto none\n"
             "    r6 += r9\nnone:\n")
_REDIRECT = ("r1 = map[m] ll\n    r2 = *(u32 *)(r10 - 16)\n    r3 = 0\n"
             "    call bpf_redirect_map\n")
_OUTPUT = _VALUE + "r3 = 8\n    r4 = 0\n    call bpf_ringbuf_output\n"
_EVENT = ("r1 = *(u64 *)(r10 - 40)\n    r2 = map[m] ll\n    r3 = 0xffffffff ll\n    r4 = r10\n"
          "    r4 += -24\n    r5 = 8\n    call bpf_perf_event_output\n")
_IN_ARENA = ("r1 = map[m] ll\n    r2 = *(u32 *)(r10 - 16)\n    r2 <<= 3\n    r1 = {start} ll\n"
             "    r1 += r2\n    r1 = addr_space_cast(r1, 0, 1)\n")
_LOAD = _IN_ARENA + "    r1 = *(u64 *)(r1 + 0)\n    r6 ^= r1\n"
_STORE = _IN_ARENA + "    *(u64 *)(r1 + 0) = r8\n"
# whole programs, without the loop
_LEAVE = "r0 = 2\n    exit\n"
_JUMP = "r2 = map[m] ll\n    r3 = 0\n    call bpf_tail_call\n" + _LEAVE
_DRAIN = (f"r1 = map[m] ll\n    r2 = func[each] ll\n    r3 = 0\n    r4 = 1\n"
          f"    call bpf_user_ringbuf_drain\n    r0 >>= {DRAINED.bit_length() - 2}\n    exit\n"
          "each:\n    r0 = 0\n    exit\n")
_WHOLE = {"tail call": (_JUMP, MAX_TAIL_CALLS), "drain": (_DRAIN, DRAINED)}
# the key is used: or our compiler makes one multiplication of the loop, which then costs nothing
_NOTHING = "r6 ^= r1\n"
OPERATIONS = {"nothing": _NOTHING, "lookup": _LOOKUP, "update": _UPDATE,
              "delete+insert": _DELETE + _UPDATE, "push": _PUSH, "push+pop": _PUSH + _POP,
              "peek": _PEEK, "find": _FIND_MAP, "redirect": _REDIRECT, "output": _OUTPUT,
              "event": _EVENT, "load": _LOAD, "store": _STORE}
_OWN = {MapType.PROG_ARRAY: ("tail call",), MapType.USER_RINGBUF: ("drain",),
        MapType.RINGBUF: ("output",), MapType.PERF_EVENT_ARRAY: ("event",),
        MapType.ARENA: ("load", "store"), **dict.fromkeys(OF_MAPS, ("find",)),
        **dict.fromkeys(TARGETS, ("redirect",))}


def operations_of(kind: MapType) -> tuple[str, ...]:
    if kind in _OWN:
        return _OWN[kind]
    if kind == MapType.BLOOM_FILTER:
        return "peek", "push"
    if kind in KEYLESS:
        return "peek", "push+pop"
    return ("lookup", "update") if kind in FIXED else ("lookup", "update", "delete+insert")


def spec_of(kind: MapType, entries: int, value_size: int = 8) -> MapSpec:
    match kind:
        case MapType.PROG_ARRAY:
            return MapSpec("m", kind, 4, 4, 1, slots=((0, "bench"),))
        case MapType.RINGBUF | MapType.USER_RINGBUF:
            size = RING_BYTES if kind == MapType.RINGBUF else DRAINED * RECORD_BYTES
            return MapSpec("m", kind, 0, 0, size)
        case MapType.PERF_EVENT_ARRAY:
            return MapSpec("m", kind, 4, 4, 0)
        case MapType.ARENA:
            pages = -(-entries * 8 // PAGE_BYTES)
            return MapSpec("m", kind, 0, 0, pages, flags=int(MapFlag.MMAPABLE))
        case _ if kind in OF_MAPS:
            # the kernel waits for all programs to end whenever an entry is set
            return MapSpec("m", kind, 4, 4, min(entries, 512), inner=INNER)
        case _ if kind in TARGETS:
            return MapSpec("m", kind, 4, 4, 1 if kind == MapType.CPUMAP else entries)
    flags = MapFlag.NO_PREALLOC if kind == MapType.LPM_TRIE else 0
    return MapSpec("m", kind, KEYED.get(kind, 0), value_size, entries, flags=flags)


def keys_of(spec: MapSpec) -> int:
    """How many keys the programs draw from."""
    if spec.type == MapType.ARENA:
        return spec.max_entries * PAGE_BYTES // 8
    return max(spec.max_entries, 1)


def many(operation: str) -> int:
    """Operations in one run of the program."""
    return _WHOLE[operation][1] if operation in _WHOLE else LOOPS


def program_of(spec: MapSpec, operation: str) -> Object:
    """With "nothing" the program without an operation."""
    key = _PREFIX_KEY if spec.type == MapType.LPM_TRIE else _PLAIN_KEY
    if operations_of(MapType(spec.type))[0] in _WHOLE:
        text = _WHOLE[operation][0] if operation in _WHOLE else _LEAVE
    else:
        what = OPERATIONS[operation].replace("{start}", str(start_of(spec)))
        text = _HEAD.format(loops=LOOPS, key=key) + what + _TAIL
    maps = (spec, MapSpec("lanes", MapType.ARRAY, 4, _LANE_BYTES, LANES))
    program = ProgramSpec("bench", "xdp", "xdp", asm.assemble(text, [one.name for one in maps]))
    types = typed(program.insns)[0]  # a callback has some
    return Object("bench", (program,), maps, "GPL", btf=Btf.parse(types) if types else None)


def packet_of(lane: int) -> bytes:
    return struct.pack("=I", lane).ljust(64, b"\0")


def lane_of(seed: int, base: int, count: int) -> bytes:
    return struct.pack("=3Q", seed * 7919 + 1, base, count - 1).ljust(_LANE_BYTES, b"\0")


def all_keys(spec: MapSpec, count: int) -> list[bytes]:
    if spec.type == MapType.LPM_TRIE:
        return [struct.pack("=I", 32) + n.to_bytes(4, "big") for n in range(count)]
    return [n.to_bytes(spec.key_size, "little") for n in range(count)]
