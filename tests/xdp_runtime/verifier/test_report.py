"""Findings as messages, notes for editors, and verdicts that are remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xdp_runtime import cache
from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.isa import JumpIf
from xdp_runtime.object import GlobalKind, Line, MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.verifier import cached, obligations
from xdp_runtime.verifier.env import KINDS, Finding
from xdp_runtime.verifier.explain import Note, NotedFacts, annotated, explain, say
from xdp_runtime.verifier.report import as_error, line_of, place_of, verify

ROOT = Path(__file__).resolve().parents[3]
OBJECTS = [*sorted((ROOT / "examples").glob("*.o")),
           ROOT / "tests/xdp_runtime/programs/balancer_small.o"]
CELLS = MapSpec("cells", MapType.ARRAY, 4, 16, 1)
RODATA = MapSpec(".rodata", MapType.ARRAY, 4, 8, 1, flags=MapFlag.RDONLY_PROG,
                 global_kind=GlobalKind.RODATA, initial=bytes([7, 0, 0, 0, 0, 0, 0, 0]))
LINES = (Line(0, "/src/a.c", 10, 1, "int f(void)"),
         Line(2, "/src/a.c", 12, 5, "\treturn *p;\x1b[2J"))


def program(text: str, lines: tuple[Line, ...] = ()) -> Object:
    maps = (CELLS, RODATA)
    insns = assemble(text, [m.name for m in maps])
    return Object("test", (ProgramSpec("test", "xdp", "xdp", insns, lines=lines),), maps, "GPL")


def notes_of(obj: Object, spec: ProgramSpec) -> dict[int, Note]:
    facts = NotedFacts(len(spec.insns))
    verify(obj, spec, facts=facts)
    return {note["insn"]: note for note in explain(obj, spec, facts)}


# ---- messages ------------------------------------------------------------------------------------

def test_the_line_of_an_instruction_is_the_last_before_it() -> None:
    spec = program("r0 = 2\nr0 = 2\nr0 = 2\nr0 = 2\nexit", LINES).programs[0]
    assert [line.line if (line := line_of(spec, slot)) else 0 for slot in range(4)] == [
        10, 10, 12, 12]
    assert line_of(program("exit").programs[0], 0) is None


def test_a_place_is_one_printable_line() -> None:
    spec = program("r0 = 2\nr0 = 2\nr0 = 2\nexit", LINES).programs[0]
    assert place_of(spec, 1) == "instruction 1 (a.c:10: int f(void))"
    assert place_of(spec, 3) == "instruction 3 (a.c:12: return *p; [2J)"
    assert place_of(replace(spec, lines=()), 3) == "instruction 3"
    assert place_of(replace(spec, lines=(Line(0, "a.c", 0, 0, ""),)), 3) == "instruction 3 (a.c:0)"


def test_a_finding_becomes_an_error_with_all_it_knows() -> None:
    obj = program("r2 = *(u32 *)(r1 + 0)\nr3 = 5\nr0 = *(u8 *)(r2 + 13)\nexit", LINES)
    (finding,) = verify(obj, obj.programs[0]).errors
    assert finding == Finding(
        2, "bounds", "1 byte at offset 13 of the packet is not proven to exist (proven: 0 bytes)",
        "r2=a packet pointer", "check `data + 14 <= data_end` before this access")
    error = as_error(obj.programs[0], finding)
    assert (error.exit_code, error.insn, error.mend) == (4, 2, finding.mend)
    assert error.what == "test: instruction 2 (a.c:12: return *p; [2J)"
    assert (error.why, error.detail) == (finding.text, "known: r2=a packet pointer")
    assert str(error) == f"{error.what}: {finding.text} ({finding.mend})"


@pytest.mark.parametrize("text", [
    "exit", "r0 = r3\nexit", "call 9999\nexit", "r0 = 0", "goto -1\nexit"])
def test_every_finding_is_of_a_known_kind(text: str) -> None:
    obj = program(text)
    report = verify(obj, obj.programs[0])
    assert not report.ok and report.errors[0].kind in KINDS
    assert 0 <= report.errors[0].insn < len(obj.programs[0].insns)


# ---- notes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_notes_of_whole_programs(path: Path) -> None:
    obj = read_object(path)
    for spec in obj.programs:
        notes = notes_of(obj, spec)
        assert list(notes) == [slot for slot, insn in enumerate(spec.insns) if insn is not None]
        for slot, note in notes.items():
            insn = spec.insns[slot]
            assert insn is not None
            assert len(note["obligations"]) == len(obligations.obligations(insn))
            assert ("branch" in note) == (isinstance(insn, JumpIf) and note["visited"])
            assert all(operand["kinds"] for operand in note["operands"].values())
        text = annotated(spec, list(notes.values()))
        assert text.count("never runs") <= sum(not note["visited"] for note in notes.values())


def test_branches_and_constants() -> None:
    obj = program("""
        r1 = map_value[.rodata]+0 ll
        r0 = *(u32 *)(r1 + 0)
        if r0 == 7 goto +1
        r0 = 1
        if r0 == 8 goto -2
        exit
    """)
    notes = notes_of(obj, obj.programs[0])
    assert notes[2]["constant"] == 7
    assert (notes[3]["branch"], notes[5]["branch"]) == ("always", "never")
    assert not notes[4]["visited"] and notes[2]["operands"]["r1"]["to"] == ["map value of .rodata"]
    text = annotated(obj.programs[0], list(notes.values()))
    assert "| r1=map value of .rodata  loads 7" in text
    assert "| r0=7  always taken" in text and "\n-    4: r0 = 1" in text


def test_what_a_pruned_path_may_have_otherwise_is_not_shown() -> None:
    """r0 is 1 or 2 at the end, but only one of the two paths is walked to it."""
    obj = program("r1 = *(u32 *)(r1 + 16)\nr0 = 1\nif r1 == 5 goto +1\nr0 = 2\nexit")
    notes = notes_of(obj, obj.programs[0])
    assert notes[4]["operands"]["r0"].get("umax") in (None, 2)
    assert notes[2]["operands"]["r1"]["umax"] == 0xFFFFFFFF


def test_operands_of_several_kinds() -> None:
    obj = program("""
        r1 = *(u32 *)(r1 + 16)
        r2 = r10
        *(u64 *)(r10 - 8) = 0
        if r1 == 5 goto load
        r2 = map_value[cells]+8 ll
    load:
        r3 = *(u64 *)(r2 - 8)
        r0 = 0
        exit
    """)
    notes = notes_of(obj, obj.programs[0])
    r2 = notes[6]["operands"]["r2"]
    assert (r2["kinds"], r2["to"]) == (["pointer"], ["map value of cells", "stack"])
    assert "offset" not in r2


def test_obligations_have_words_for_names() -> None:
    obj = program("exit")
    assert say(obligations.ValidMap(0, 4), obj) == "map cells exists and has a byte 4 to point at"
    assert say(obligations.ValidMap(9), obj) == "map 9 exists"
    assert say(obligations.ValidAccess(2, -4, 1, True)) == "1 byte at r2-4 may be written"
    assert say(obligations.NotAllowed("no")) == "refused: no"


# ---- the cache -----------------------------------------------------------------------------------

@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("notes", [False, True])
@pytest.mark.parametrize("text", ["r0 = 2\nexit", "exit"])
def test_the_second_answer_is_the_first(text: str, notes: bool, cold: Path) -> None:
    obj = program(text)
    first = cached.check(obj, obj.programs[0], notes)
    second = cached.check(obj, obj.programs[0], notes)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert replace(second, from_cache=False) == first
    assert (first.notes is not None) == notes


def test_what_a_verdict_depends_on() -> None:
    obj = program("r0 = 2\nexit")
    spec = obj.programs[0]
    frozen = replace(RODATA, initial=bytes(8))
    others = [
        cached.entry_name(obj, spec, True),
        cached.entry_name(obj, replace(spec, insns=assemble("r0 = 1\nexit", [])), False),
        cached.entry_name(obj, replace(spec, kind="xdp/devmap"), False),
        cached.entry_name(replace(obj, maps=(CELLS, frozen)), spec, False),
        cached.entry_name(replace(obj, maps=(replace(CELLS, value_size=8), RODATA)), spec, False),
        cached.entry_name(replace(obj, license="MIT"), spec, False),
    ]
    assert len({cached.entry_name(obj, spec, False), *others}) == 7
    assert cached.entry_name(replace(obj, name="other"), spec, False) == cached.entry_name(
        obj, spec, False)


def test_a_budget_that_ran_out_is_not_remembered(cold: Path) -> None:
    obj = program("r0 = 2\nagain:\nr0 += 1\nif r0 != 1 goto again\nexit")
    checked = cached.check(obj, obj.programs[0], time_budget_s=0.1)
    assert checked.report.errors[0].kind == "budget"
    assert cache.get(cached.entry_name(obj, obj.programs[0], False)) is None
