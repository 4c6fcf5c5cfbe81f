"""ARENA: casts, arithmetic, accesses to pages that are and are not there, as in the kernel."""

from __future__ import annotations

import ctypes
import errno
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.test_limits import kernels_answer
from xdp_runtime import asm
from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.compiler import target
from xdp_runtime.elf import read_object
from xdp_runtime.errors import VerifyError
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.limits import refusal
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import ModelArena
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.policy_uses import find_uses
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

pytestmark = [pytest.mark.root, needs_bpf()[1]]
START, PAGES, THERE = 0x7E00_0010_0000, 4, (0, 1, 3)
ARENA = MapSpec("arena", MapType.ARENA, 0, 0, PAGES, flags=int(MapFlag.MMAPABLE), map_extra=START)
OUT = MapSpec("out", MapType.ARRAY, 4, 64, 1)
LIST = Path(__file__).parents[1] / "families" / "arena.o"
HEAD, END = "r1 = map[arena] ll\n", "r0 = 2\nexit\n"


def at(register: int, offset: int) -> str:
    """A pointer to a byte of the arena."""
    return (f"r{register} = {START + offset} ll\n"
            f"r{register} = addr_space_cast(r{register}, 0, 1)\n")


def out(register: int, place: int = 0) -> str:
    return f"r9 = map_value[out] ll\n*(u64 *)(r9 + {8 * place}) = r{register}\n"


def program(text: str, arena: MapSpec = ARENA) -> Object:
    return Object("t", (ProgramSpec("t", "xdp", "xdp", asm.assemble(text, ["arena", "out"])),),
                  (arena, OUT), "GPL")


@dataclass(frozen=True)
class Outcome:
    retval: int
    out: bytes
    pages: dict[int, bytes]


def fill(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE_BYTES)


def in_kernel(obj: Object, there: tuple[int, ...] = THERE) -> Outcome:
    with load_into_kernel(obj) as one, one.maps["arena"].pages() as pages:
        for n in there:
            pages[PAGE_BYTES * n:PAGE_BYTES * (n + 1)] = fill(n)
        retval = one.run(bytes(64)).retval
        found = {n: bytes(pages[PAGE_BYTES * n:PAGE_BYTES * (n + 1)]) for n in there}
        return Outcome(retval, one.maps["out"].lookup(bytes(4)) or b"", found)


def interpreted(obj: Object, there: tuple[int, ...] = THERE) -> Outcome:
    machine = Machine(obj, obj.programs[0])
    arena = machine.maps[0]
    assert isinstance(arena, ModelArena)
    for n in there:
        arena.make(n, 1)
        arena.pages[n][:] = fill(n)
    retval = machine.run(bytes(64)).verdict
    return Outcome(retval, bytes(machine.maps[1].lookup(bytes(4)) or b""),
                   {n: bytes(page) for n, page in arena.pages.items()})


def compiled(obj: Object, opt: int, there: tuple[int, ...] = THERE) -> Outcome:
    with load(obj, opt=opt) as one:
        arena, found = one.raw_maps["arena"], {}
        for n in there:
            with arena.pages(n, 1) as page:
                page[:] = fill(n)
        retval = one.run(bytes(64)).retval
        for n in there:
            with arena.pages(n, 1) as page:
                found[n] = bytes(page)
        value = one.raw_maps["out"][bytes(4)]
        assert isinstance(value, bytes)
        return Outcome(retval, value, found)


def same(obj: Object) -> Outcome:
    theirs = in_kernel(obj)
    assert interpreted(obj) == theirs
    assert compiled(obj, 0) == theirs
    assert compiled(obj, 3) == theirs
    return theirs


def numbers(outcome: Outcome) -> tuple[int, ...]:
    return struct.unpack("<8Q", outcome.out)


ALU = {
    **{f"{sign} constant": at(2, 0x1008) + f"r2 {sign}= {by}\n" + out(2)
       for sign, by in (("+", -24), ("-", 0x2000), ("*", 5), ("/", 5), ("|", -24), ("&", -24),
                        ("<<", 5), (">>", 5), ("%", 5), ("^", 5), ("s>>", 5))},
    "32 bits": at(2, 0x1008) + "w2 += 8\nr4 = *(u64 *)(r2 + 0)\n" + out(2) + out(4, 1),
    "plus a number": at(2, 8) + "r3 = 0x100000008 ll\nr2 += r3\n" + out(2)
                     + "r4 = *(u64 *)(r2 + 0)\n" + out(4, 1),
    "number plus": at(2, 8) + "r3 = 0x100000008 ll\nr3 += r2\n" + out(3)
                   + "r4 = *(u64 *)(r3 + 0)\n" + out(4, 1),
    "number minus": at(2, 8) + "r3 = 0x100000008 ll\nr3 -= r2\n" + out(3),
    "difference": at(2, 8) + at(3, 0) + "r2 -= r3\n" + out(2) + "r4 = *(u64 *)(r2 + 0)\n"
                  + out(4, 1),
    "negated": at(2, 0x1008) + "r2 = -r2\n" + out(2),
    "swapped": at(2, 0x1008) + "r2 = be32 r2\n" + out(2),
    "moved": at(2, 8) + "r3 = r2\nr4 = *(u64 *)(r3 + 0)\n" + out(4) + "w5 = w2\n" + out(5, 1)
             + "r5 = (s32)r2\n" + out(5, 2),
    "spilled": at(2, 8) + "*(u64 *)(r10 - 8) = r2\nr3 = *(u64 *)(r10 - 8)\n"
               "r4 = *(u64 *)(r3 + 0)\n" + out(3) + out(4, 1),
    "compared": at(2, 8) + at(3, 0) + "r5 = 0\nr4 = 9\nif r3 > r2 goto one\nr5 += 1\none:\n"
                "if r2 == 0 goto two\nr5 += 2\ntwo:\nif r2 s< r4 goto three\nr5 += 4\nthree:\n"
                + out(5),
    "cast to user space": at(2, 8) + "r3 = addr_space_cast(r2, 1, 0)\n" + out(3)
                          + "r4 = 0\nr4 = addr_space_cast(r4, 1, 0)\n" + out(4, 1)
                          + "r5 = map_value[out] ll\nr5 = *(u64 *)(r5 + 0)\nr5 &= 65535\n"
                          "r6 = addr_space_cast(r5, 1, 0)\n" + out(6, 2),
    "cast again": at(2, 8) + "r3 = addr_space_cast(r2, 0, 1)\nr4 = *(u64 *)(r3 + 0)\n" + out(4),
    "address of a byte": "r2 = map_value[arena]+100 ll\n" + out(2)
                         + "r2 = addr_space_cast(r2, 0, 1)\nr3 = *(u64 *)(r2 + 0)\n" + out(3, 1),
    "stored": at(2, 8) + at(3, 0x1000) + "*(u64 *)(r3 + 0) = r2\n*(u32 *)(r3 + 8) = r2\n"
              "r4 = *(u64 *)(r3 + 0)\n" + out(4) + out(3, 1),
}


@pytest.mark.parametrize("name", ALU)
def test_pointers(name: str) -> None:
    same(program(HEAD + ALU[name] + END))


PLACES = (16, 17, 0x0FFC, 0x1FFC, 0x2000, 0x2FFF, 0x3FF8, 0x3FFC, 0x4000, -8, -4, 1 << 20, 1 << 31)


@pytest.mark.parametrize("offset", PLACES)
def test_accesses(offset: int) -> None:
    """Loads and stores of all sizes: inside, across the border of a page that is not there, outside
    of the arena; with an offset in the instruction that leads in or out."""
    text = HEAD + "r8 = 0\n"
    for size in (8, 16, 32, 64):
        for shift in (0, -8, 32760, -32768):
            text += at(2, offset) + f"r4 = 7\nr4 = *(u{size} *)(r2 {shift:+})\n".replace(
                "+", "+ ").replace("(r2 -", "(r2 - ") + "r8 ^= r4\nr8 *= 3\n"
            if size < 64:
                text += f"r4 = *(s{size} *)(r2 + 0)\nr8 ^= r4\nr8 *= 3\n"
        text += at(2, offset) + f"r4 = {-size}\n*(u{size} *)(r2 + 1) = r4\n" + (
            f"*(u{size} *)(r2 - 16) = 77\n")
    outcome = same(program(text + out(8) + END))
    assert numbers(outcome)[0] or offset not in (16, 17, 0x3FF8)


OPERATIONS = ("lock *(u{0} *)(r2 + 0) += r4", "lock *(u{0} *)(r2 + 0) |= r4",
              "lock *(u{0} *)(r2 + 0) &= r4", "lock *(u{0} *)(r2 + 0) ^= r4",
              "{1}4 = atomic_fetch_add((u{0} *)(r2 + 0), {1}4)",
              "{1}4 = xchg{2}_{0}(r2 + 0, {1}4)",
              "{1}0 = cmpxchg{2}_{0}(r2 + 0, {1}0, {1}4)",
              "{1}4 = load_acquire((u{0} *)(r2 + 0))",
              "store_release((u{0} *)(r2 + 0), {1}4)")


@pytest.mark.parametrize("offset", [16, 0x2010, 0x3FF8, 0x4000])
def test_atomics(offset: int) -> None:
    """On a page that is not there they change nothing, neither memory nor registers."""
    text = HEAD
    for n, (operation, wide) in enumerate((o, w) for o in OPERATIONS for w in (64, 32)):
        form = (64, "r", "") if wide == 64 else (32, "w", "32")
        text += (at(2, offset + 8 * (n % 2)) + "r0 = -1\nr4 = 0x1234500000007 ll\n"
                 + operation.format(*form) + "\nr5 = map_value[out] ll\n"
                 "r6 = *(u64 *)(r5 + 8)\nr6 *= 5\nr6 ^= r4\n*(u64 *)(r5 + 8) = r6\n"
                 "r6 = *(u64 *)(r5 + 16)\nr6 *= 5\nr6 ^= r0\n*(u64 *)(r5 + 16) = r6\n")
    same(program(text + END))


@pytest.mark.parametrize("seed", range(6))
def test_random_programs(seed: int) -> None:
    rng = random.Random(seed)
    lines = [at(n, rng.choice((0, 8, 0xFF8, 0x1000, 0x3000, 0x2800))) for n in (2, 3, 4)]
    for _ in range(120):
        one, other = rng.sample((2, 3, 4), 2)
        number = rng.choice((5, 6))
        lines.append(rng.choice((
            f"r{one} += {rng.choice((1, 8, -8, 4096, -4096, 0x7FFFFFFF))}\n",
            f"r{one} = r{other}\n",
            f"r{one} ^= {rng.choice((8, 0x1000, 0x3000))}\n",
            f"r{number} = *(u{rng.choice((8, 16, 32, 64))} *)(r{one} + "
            f"{rng.choice((0, 7, 4090, 8192))})\n",
            f"*(u{rng.choice((8, 16, 32, 64))} *)(r{one} + {rng.choice((0, 3, 8184))})"
            f" = r{rng.choice((one, other, number))}\n",
            f"r{one} &= 16383\nr{one} |= {START & 0xFFFFFFFF}\n",
            f"r{number} = addr_space_cast(r{one}, 1, 0)\n",
            f"r{one} = addr_space_cast(r{number}, 0, 1)\n",
            f"r{number} ^= r{rng.choice((5, 6, 7))}\n",
            at(one, rng.randrange(0, 0x4000)),
            f"r{number} = atomic_fetch_add((u64 *)(r{one} + 0), r{number})\n",
        )))
    text = HEAD + "r5 = 1\nr6 = 2\nr7 = 3\n" + "".join(lines)
    same(program(text + "".join(out(n, n - 2) for n in range(2, 8)) + END))


REFUSED = {
    "no arena": "r2 = 0\nr2 = addr_space_cast(r2, 0, 1)\n",
    "a user pointer": HEAD + at(2, 8) + "r3 = addr_space_cast(r2, 1, 0)\nr4 = *(u64 *)(r3 + 0)\n",
    "its lower half": HEAD + at(2, 8) + "w3 = w2\nr4 = *(u64 *)(r3 + 0)\n",
    "swapped": HEAD + at(2, 8) + "r2 = be32 r2\nr4 = *(u64 *)(r2 + 0)\n",
    "half spilled": HEAD + at(2, 8) + "*(u32 *)(r10 - 8) = r2\nr3 = *(u32 *)(r10 - 8)\n",
    "fetch or": HEAD + at(2, 8) + "r4 = 1\nr4 = atomic_fetch_or((u64 *)(r2 + 0), r4)\n",
    "fetch and": HEAD + at(2, 8) + "r4 = 1\nw4 = atomic_fetch_and((u32 *)(r2 + 0), w4)\n",
    "a key": HEAD + at(2, 8) + "r1 = map[out] ll\ncall bpf_map_lookup_elem\n",
    "a lookup": HEAD + "*(u64 *)(r10 - 8) = 0\nr2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\n",
    "beyond its end": f"r2 = map_value[arena]+{PAGES * PAGE_BYTES + 1} ll\n",
    "mixed": HEAD + "r5 = map_value[out] ll\nr6 = *(u64 *)(r5 + 0)\n" + at(2, 8)
             + "if r6 == 0 goto one\nr2 = r5\none:\nr4 = *(u64 *)(r2 + 0)\n",
}
ACCEPTED = {
    "its end": f"r2 = map_value[arena]+{PAGES * PAGE_BYTES} ll\n",
    "any number": HEAD + "r2 = 8\nr2 = addr_space_cast(r2, 0, 1)\nr4 = *(u64 *)(r2 + 0)\n",
    "the stack": HEAD + "r2 = addr_space_cast(r10, 0, 1)\n",
    "an argument": HEAD + at(2, 8) + "r1 = r2\nr2 = 0\ncall bpf_redirect\n",
    "unaligned": HEAD + at(2, 9) + "r4 = 1\nlock *(u64 *)(r2 + 0) += r4\n",
}


@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED])
def test_verifier(name: str) -> None:
    obj = program((REFUSED | ACCEPTED)[name] + END)
    assert verify(obj, obj.programs[0]).ok is (name in ACCEPTED)
    if name in ACCEPTED:
        load_into_kernel(obj).close()
    else:
        with pytest.raises(VerifyError):
            load_into_kernel(obj)


def test_what_a_policy_sees() -> None:
    obj = program(HEAD + at(2, 8) + "r4 = *(u64 *)(r2 + 0)\n*(u64 *)(r2 + 0) = r4\n" + END)
    assert [(use.insn, use.kind) for use in find_uses(obj, obj.programs[0]).all
            if use.name == "arena"] == [(5, "map.read"), (6, "map.write")]


def test_one_arena_a_program() -> None:
    other = replace(ARENA, name="other", map_extra=START + (1 << 32))
    insns = asm.assemble("r1 = map[arena] ll\nr1 = map[other] ll\n" + END, ["arena", "other"])
    obj = Object("t", (ProgramSpec("t", "xdp", "xdp", insns),), (ARENA, other), "GPL")
    assert not verify(obj, obj.programs[0]).ok
    with pytest.raises(VerifyError, match="one arena"):
        load_into_kernel(obj)


def test_no_user_conversion() -> None:
    spec = replace(ARENA, flags=ARENA.flags | MapFlag.NO_USER_CONV)
    assert numbers(same(program(
        HEAD + at(2, 8) + "r3 = addr_space_cast(r2, 1, 0)\n" + out(3) + END, spec)))[0] == (
        (START + 8) & 0xFFFFFFFF)


@pytest.mark.parametrize("wrong", [
    {"max_entries": 0}, {"max_entries": 1 << 20}, {"max_entries": (1 << 20) + 1}, {"key_size": 4},
    {"value_size": 8}, {"map_extra": START + 1}, {"map_extra": (1 << 32) - 4096},
    {"map_extra": (1 << 32) - 4096 * PAGES}, {"flags": 0}, {"flags": 0x400 | 0x80},
    {"flags": 0x400 | 1 << 17}, {"flags": 0x400 | 8}, {"map_extra": 0},
    {"map_extra": 0, "max_entries": (1 << 20) + 1}], ids=str)
def test_definitions(wrong: dict[str, int]) -> None:
    spec = replace(ARENA, **wrong)  # type: ignore[arg-type]
    refused = refusal(spec)
    assert (refused[0] if refused else 0) == kernels_answer(spec, 0)


class Node(ctypes.Structure):
    _fields_ = (("next", ctypes.c_uint64), ("value", ctypes.c_uint64))


class Head(ctypes.Structure):
    _fields_ = (("first", ctypes.c_uint64), ("seen", ctypes.c_uint64), ("sum", ctypes.c_uint64))


def listed(pages: memoryview, start: int, run: Callable[[], int]
           ) -> tuple[int, list[int], int, int]:
    """Make a list of ten nodes, follow it by its pointers after the run."""
    head = Head.from_address(start)
    assert head.seen == 7  # as the object says
    places = [start + 0x1000 * (n + 1) + 16 * n for n in range(10)]
    for n, place in enumerate(places):
        node = Node.from_address(place)
        node.next, node.value = (places[n + 1] if n < 9 else 0), 100 * n
    head.first = places[0]
    verdict = run()
    walked: list[int] = []
    place = head.first
    while len(walked) < 25:
        node = Node.from_address(place)
        walked.append(node.value)
        place = node.next
    return verdict, walked, head.seen, head.sum


def test_a_list_that_both_sides_walk() -> None:
    """Pointers mean the same to a program that clang compiled and to user space."""
    obj = read_object(LIST)
    with load_into_kernel(obj) as one, one.maps["arena"].pages() as pages:
        theirs = listed(pages, start_of(obj.maps[0]), lambda: one.run(bytes(64)).retval)
    for opt in target.TESTED:
        with load(obj, opt=opt) as ours, ours.raw_maps["arena"].pages() as pages:
            assert listed(pages, start_of(obj.maps[0]),
                          lambda: ours.run(bytes(64)).retval) == theirs
    assert theirs[0] == 3 and theirs[2:] == (17, 4500)
    assert theirs[1][:11] == [901, *(100 * n + 1 for n in range(9)), 901]


def test_pages_from_outside(tmp_path: Path) -> None:
    """Another process has the same memory; a map that is frozen, or is mapped, says so."""
    with Map.create(ARENA, 1, tmp_path) as one:
        with one.pages(1, 2) as pages:
            pages[:3] = b"abc"
            assert ctypes.string_at(START + PAGE_BYTES, 3) == b"abc"
            with pytest.raises(OSError, match="mapped to write") as busy:
                one.freeze()
            assert busy.value.errno == errno.EBUSY
            with (Map.open(tmp_path / "arena") as other,
                  pytest.raises(OSError, match="in use"), other.pages()):
                pass
        assert bytes(one.memory("present")) == b"\0\1\1\0"
        assert bytes(one.memory("pages")[PAGE_BYTES:PAGE_BYTES + 3]) == b"abc"
        for first, count in ((0, 5), (4, 1), (-1, 1), (0, 0)):
            with pytest.raises(OSError, match="Invalid"), one.pages(first, count):
                pass
        for operation in (lambda: one.lookup(b""), lambda: one.update(b"", b""), one.next_key):
            with pytest.raises(OSError, match="have no"):
                operation()
        one.freeze()
        with pytest.raises(PermissionError), one.pages():
            pass
    with (Map.create(replace(ARENA, flags=ARENA.flags | MapFlag.SEGV_ON_FAULT), 1) as one,
          pytest.raises(OSError, match="only programs"), one.pages()):
        pass


def test_frozen_as_in_the_kernel() -> None:
    with Map.create(ARENA, 1) as ours, KernelMap(ARENA) as theirs:
        ours.freeze()
        theirs.freeze()
        for one in (ours, theirs):
            with pytest.raises(PermissionError), one.pages():  # type: ignore[attr-defined]
                pass
