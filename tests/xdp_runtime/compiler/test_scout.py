"""Scouts: they find the first large lookup, and leave no trace of themselves."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence

import pytest

from tests.xdp_runtime.compiled import RunState
from xdp_runtime.asm import assemble
from xdp_runtime.compiler.link import Unit, proven_facts
from xdp_runtime.compiler.scout import Scout
from xdp_runtime.maps.scout import KIND, PLACE_BYTES, SCOUT, STEP, STEPS
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load

TABLE = MapSpec("table", MapType.HASH, 4, 8, 64)
COUNTS = MapSpec("counts", MapType.ARRAY, 4, 8, 4)
RECENT = MapSpec("recent", MapType.LRU_HASH, 4, 8, 64)
OTHERS = MapSpec("others", MapType.PROG_ARRAY, 4, 4, 4, slots=((1, "second"),))
MAPS = (TABLE, COUNTS, RECENT, OTHERS)
KEY = (7).to_bytes(4, "little")
LARGE = 8192  # bytes: the hashes are large, the array is not
_PARAMETERS = "ptr %state, ptr %place"
UNIT = Unit("scout-test", f"""
define i64 @"test.scout"({_PARAMETERS}) {{
  %r = call i64 @"{SCOUT}"({_PARAMETERS})
  %steps = call i64 @"{STEPS}"()
  ret i64 %steps
}}
define i64 @"test.step"(ptr %place) {{
  %r = call i64 @scout_step(ptr %place)
  ret i64 %r
}}
""", (STEP,), ("test.scout", "test.step"), scout=LARGE)

# r6 = ctx, r7 = data, 20 bytes proven, the key at r10 - 4 from the packet
START = """
r6 = r1
r7 = *(u32 *)(r1 + 0)
r8 = *(u32 *)(r1 + 4)
r2 = r7
r2 += 20
if r2 > r8 goto out
r3 = *(u32 *)(r7 + 0)
*(u32 *)(r10 - 4) = r3
"""
LOOK_UP = "r2 = r10\nr2 += -4\nr1 = map[table] ll\ncall 1\n"
COUNT = """
*(u32 *)(r10 - 8) = 1
r2 = r10
r2 += -8
r1 = map[counts] ll
call 1
if r0 == 0 goto out
r1 = 1
lock *(u64 *)(r0 + 0) += r1
r2 = *(u64 *)(r0 + 0)
*(u64 *)(r0 + 0) = r2
"""
END = "\nout:\nr0 = 2\nexit"
WRITE = "r3 = 77\n*(u8 *)(r7 + 9) = r3\n"


def obj(*texts: str) -> Object:
    names = ("first", "second")
    programs = tuple(
        ProgramSpec(name, "xdp", "xdp", assemble(START + text + END, [m.name for m in MAPS]))
        for name, text in zip(names, texts, strict=False))
    return Object("scouted", programs, MAPS, "GPL")


def scouted(program: Program, packet: bytes, steps: bool = True) -> bytes:
    """The place after a scout and its steps; asserts that nothing else has changed."""
    run = RunState(bytes(256) + packet + bytes(64), 256, 256, 256 + len(packet), 40, 300)
    place = ctypes.create_string_buffer(PLACE_BYTES)
    before = contents(program), run.frame.raw, run.memory.raw, run.worker.raw
    scout = program.code.function("test.scout", ctypes.c_int64, *[ctypes.c_void_p] * 2)
    count = scout(run.address, ctypes.addressof(place))
    step = program.code.function("test.step", ctypes.c_int64, ctypes.c_void_p)
    for _ in range(count if steps else 0):
        step(ctypes.addressof(place))
    assert (contents(program), run.frame.raw, run.memory.raw, run.worker.raw) == before
    return place.raw


def contents(program: Program) -> Sequence[bytes]:
    out = []
    for one in program.all_maps:
        for region in one.symbols():
            with one.memory(region) as memory:
                out.append(bytes(memory))
    return out


def kind(place: bytes) -> int:
    return int(struct.unpack_from("=I", place, KIND)[0])


@pytest.mark.parametrize("before", ["", WRITE, COUNT, WRITE + COUNT + WRITE,
                                    "r1 = r6\ncall 8\n", "call 7\n", "call 5\n"])
def test_it_finds_the_lookup_behind_what_it_leaves_out(before: str) -> None:
    with load(obj(before + LOOK_UP), units=[UNIT]) as program:
        for number in range(60):
            program.raw_maps["table"].update(struct.pack("=I", number), bytes(8))
        place = scouted(program, KEY + bytes(40), steps=False)
        assert kind(place) == 1
        place = scouted(program, KEY + bytes(40))
        elements, link = struct.unpack_from("=Q", place, 16)[0], struct.unpack_from(
            "=Q", place, 32)[0]
        assert elements == program.raw_maps["table"].symbols()["elements"]
        assert link  # the chain's first or second element


def test_a_packet_that_looks_nothing_up_has_no_place() -> None:
    with load(obj(LOOK_UP), units=[UNIT]) as program:
        assert kind(scouted(program, bytes(16))) == 0


@pytest.mark.parametrize("effect", [
    "r1 = r6\nr2 = 4\ncall 44\n",  # adjust_head
    "r2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\n*(u64 *)(r10 - 16) = 0\nr4 = 0\n"
    "r1 = map[counts] ll\ncall 2\n",  # update of a small map
])
def test_it_ends_where_the_program_changes_something(effect: str) -> None:
    with load(obj(effect + LOOK_UP), units=[UNIT]) as program:
        assert kind(scouted(program, KEY + bytes(40), steps=False)) == 0


@pytest.mark.parametrize("change", [
    "r2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\n*(u64 *)(r10 - 16) = 0\nr4 = 0\n"
    "r1 = map[table] ll\ncall 2\n",
    "r2 = r10\nr2 += -4\nr1 = map[table] ll\ncall 3\n",
])
def test_it_finds_updates_and_deletes_and_makes_none(change: str) -> None:
    with load(obj(change), units=[UNIT]) as program:
        assert kind(scouted(program, KEY + bytes(40), steps=False)) == 1


def test_it_follows_a_tail_call_once() -> None:
    call = "r1 = r6\nr2 = map[others] ll\nr3 = 1\ncall 12\n"
    with load(obj(call + LOOK_UP, call + LOOK_UP), units=[UNIT]) as program:
        assert kind(scouted(program, KEY + bytes(40), steps=False)) == 0
    with load(obj(call, LOOK_UP), units=[UNIT]) as program:
        assert kind(scouted(program, KEY + bytes(40), steps=False)) != 0


def test_an_lru_map_keeps_no_mark_of_it() -> None:
    lookup = LOOK_UP.replace("table", "recent")
    small = Unit("scout-test-small", UNIT.text, UNIT.templates, UNIT.exports, scout=1 << 30)
    with load(obj(lookup), units=[small]) as program:
        program.raw_maps["recent"].update(KEY, bytes(8))
        scouted(program, KEY + bytes(40))


def test_its_text_stores_to_its_own_variables_only() -> None:
    given = obj(WRITE + COUNT + LOOK_UP)
    program = given.programs[0]
    text = Scout(program, 0, given.maps, 1, (0,), proven_facts(given, program)).lower().text
    assert "atomicrmw" not in text and "cmpxchg" not in text
    own = set(re.findall(r"(%\w[\w.]*) = alloca", text))
    own |= {name for name, base in re.findall(
        r"(%t\d+) = getelementptr inbounds i8, ptr (%\w+),", text) if base.startswith("%stack")}
    for target in re.findall(r"store \w+ [^,]+, ptr (%[\w.]+)", text):
        assert target in own
