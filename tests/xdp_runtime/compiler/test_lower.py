"""What is refused before it is lowered, and what lowering makes of what was proven.

Nothing is checked at run time: what a check would have caught, `load` refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.compiler import link, target
from xdp_runtime.compiler.lower import Lowering
from xdp_runtime.compiler.scopes import alias_scopes
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError, VerifyError
from xdp_runtime.isa import Call, JumpIf
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import Function, GlobalKind, MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

ROOT = Path(__file__).resolve().parents[3]
ARRAY = MapSpec("cells", MapType.ARRAY, 4, 16, 4)
TABLE = MapSpec("table", MapType.HASH, 4, 8, 4)
CONSTANTS = MapSpec("constants", MapType.ARRAY, 4, 16, 1, flags=MapFlag.RDONLY_PROG)
RODATA = MapSpec(".rodata", MapType.ARRAY, 4, 8, 1, flags=MapFlag.RDONLY_PROG,
                 global_kind=GlobalKind.RODATA, initial=bytes([7, 0, 0, 0, 0, 0, 0, 0]))
MAPS = (ARRAY, TABLE, CONSTANTS, RODATA)


def program(text: str, maps: tuple[MapSpec, ...] = MAPS) -> Object:
    insns = assemble(text, [m.name for m in maps])
    return Object("test", (ProgramSpec("test", "xdp", "xdp", insns),), maps, "GPL")


def lookup(name: str, key: int) -> str:
    return f"""
        *(u32 *)(r10 - 4) = {key}
        r2 = r10
        r2 += -4
        r1 = map[{name}] ll
        call 1
    """


def checked(length: int, then: str) -> str:
    """`then` where r2 points to `length` bytes of packet; leave by `goto out`."""
    return f"""
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r4 = r2
        r4 += {length}
        r0 = 2
        if r4 > r3 goto out
        {then}
    out:
        exit
    """


# ---- refused ---------------------------------------------------------------------------------

FIRST_BYTE = """
    r6 = *(u32 *)(r1 + 0)
    r3 = *(u32 *)(r1 + 4)
    r0 = r6
    r0 += 1
    if r0 > r3 goto out
    r6 = *(u8 *)(r6 + 0)
"""
PACKET = r"of the packet (is|are) not proven to exist \(proven: 0 bytes\)"
STACK = "outside the 512 bytes of the frame"
REFUSED = {  # program, kind, instruction, what is said
    "read behind the packet": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u8 *)(r2 + 100)\nexit",
        "bounds", 1, f"1 byte at offset 100 {PACKET}"),
    "read across the end": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u64 *)(r2 + 57)\nexit",
        "bounds", 1, f"8 bytes at offset 57 {PACKET}"),
    "read one byte further than checked": (
        checked(34, "*(u8 *)(r2 + 34) = 1"), "bounds", 6,
        "1 byte at offset 34 of the packet is not proven to exist .proven: 34 bytes"),
    "read before the packet": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u8 *)(r2 - 1)\nexit",
        "bounds", 1, "1 byte at offset -1 of the packet"),
    "write behind the packet": (
        "r2 = *(u32 *)(r1 + 0)\n*(u32 *)(r2 + 61) = 1\nr0 = 2\nexit",
        "bounds", 1, f"4 bytes at offset 61 {PACKET}"),
    "address that wraps": (
        "r2 = *(u32 *)(r1 + 0)\nr3 = -1 ll\nr2 += r3\nr0 = *(u8 *)(r2 + 0)\nexit",
        "bounds", 4, "1 byte at offset -1 of the packet"),
    "huge offset": (
        "r2 = *(u32 *)(r1 + 0)\nr3 = 0x7fffffffffffffff ll\nr2 += r3\n"
        "r0 = *(u64 *)(r2 + 0)\nexit",
        "arithmetic", 3, "r2 is moved by 9223372036854775807, further than any object reaches"),
    "offset from the packet": (
        checked(1, "r3 = *(u8 *)(r2 + 0)\nr2 += r3\nr0 = *(u8 *)(r2 + 0)"),
        "bounds", 8, PACKET),
    "lookup result not checked": (
        lookup("table", 1) + "r0 = *(u64 *)(r0 + 0)\nexit",
        "null", 6, "r0 is a map value pointer that may be null"),
    "index into a map value": (
        FIRST_BYTE + lookup("cells", 1)
        + "if r0 == 0 goto out\nr0 += r6\nr0 = *(u8 *)(r0 + 0)\nout:\nr0 = 2\nexit",
        "bounds", 14, r"outside the value of map cells \(16 bytes\)"),
    "negative index into a map value": (
        lookup("cells", 1) + "if r0 == 0 goto out\nr1 = -8 ll\nr0 += r1\nr0 = *(u8 *)(r0 + 0)\n"
        "out:\nexit",
        "bounds", 10, r"1 byte at offset -8: outside the value of map cells \(16 bytes\)"),
    "index into the stack": (
        FIRST_BYTE + "r7 = r10\nr7 += -8\nr7 += r6\n*(u8 *)(r7 + 0) = 1\nout:\nr0 = 2\nexit",
        "stack", 9, STACK),
    "loop without progress": ("r0 = 2\nagain:\nif r0 == 2 goto again\nexit", "loop", 1,
                              "this loop can run for ever"),
    "nothing leads there": ("r0 = 2\nagain:\nr0 += 1\ngoto again\nexit", "control", 3,
                            "no path leads to this instruction"),
    "stack or map value": (
        FIRST_BYTE + lookup("cells", 1) + "if r0 == 0 goto out\nif r6 == 3 goto +2\nr0 = r10\n"
        "r0 += -8\nr0 = *(u64 *)(r0 + 8)\nout:\nr0 = 2\nexit",
        "stack", 16, STACK),
    "misaligned atomic": (
        FIRST_BYTE + "r6 &= 7\n" + lookup("cells", 1)
        + "if r0 == 0 goto out\nr1 = 1\nr0 += r6\nlock *(u64 *)(r0 + 0) += r1\n"
        "out:\nr0 = 2\nexit",
        "align", 16, "align"),
    "number dereferenced": ("r2 = 4096\nr0 = *(u8 *)(r2 + 0)\nexit", "type", 1,
                            "r2 is a number and cannot be dereferenced"),
    "uninitialised register": ("r0 = r3\nexit", "uninit", 0,
                               "r3 is read but holds nothing on this path"),
    "no verdict": ("exit", "uninit", 0, "r0 holds no verdict at the end of the program"),
    "pointer as verdict": ("r0 = r10\nexit", "return", 1,
                           "r0 is a stack pointer at the end of the program, not a verdict"),
    "context written": ("r0 = 0\n*(u32 *)(r1 + 0) = 1\nexit", "context", 1,
                        "struct xdp_md is read-only"),
    "odd context field": ("r0 = *(u32 *)(r1 + 2)\nexit", "context", 0,
                          "offset 2 of struct xdp_md"),
    "behind the context": ("r0 = *(u32 *)(r1 + 24)\nexit", "context", 0,
                           "offset 24 of struct xdp_md"),
    "outside the stack": ("r0 = *(u8 *)(r10 + 0)\nexit", "stack", 0, STACK),
    "below the stack": ("r0 = *(u64 *)(r10 - 520)\nexit", "stack", 0, STACK),
    "r10 written": ("r10 = 1\nr0 = 0\nexit", "stack", 0, "the frame pointer r10 is read-only"),
    "outside a map value": (lookup("cells", 0) + "r0 = *(u64 *)(r0 + 9)\nexit", "bounds", 6,
                            r"offset 9: outside the value of map cells \(16 bytes\)"),
    "read-only map": ("r1 = map_value[constants]+0 ll\n*(u8 *)(r1 + 0) = 1\nr0 = 0\nexit",
                      "readonly", 2, "map constants is read-only for programs"),
    "clobbered by a call": ("call 5\nr0 = r1\nexit", "uninit", 1, "r1 is read but holds nothing"),
    "stale packet pointer": (
        "r6 = *(u32 *)(r1 + 0)\nr2 = -8\ncall 44\nr0 = *(u8 *)(r6 + 0)\nexit",
        "type", 3, "r6 is a number and cannot be dereferenced"),
    "multiplied pointer": ("r10 *= 2\nr0 = 0\nexit", "stack", 0,
                           "the frame pointer r10 is read-only"),
    "pointer and": ("r2 = r10\nr2 &= 7\nr0 = 0\nexit", "arithmetic", 1,
                    "and on r2, which is a stack pointer"),
    "two kinds at a join": (
        FIRST_BYTE + "r3 = r10\nif r6 == 0 goto +1\nr3 = 5\nr0 = *(u8 *)(r3 - 1)\n"
        "out:\nr0 = 2\nexit",
        "type", 9, "r3 is a number and cannot be dereferenced"),
    "jump out of the program": ("r0 = 0\nif r0 == 0 goto +7\nexit", "control", 1,
                                "leaves the program"),
    "falls off the end": ("r0 = 0", "control", 0, "falls off the end of the program"),
    "jump into a load": ("r0 = 0\nif r0 == 0 goto +1\nr1 = 5 ll\nexit", "control", 1,
                         "middle of a 64-bit load"),
    "recursion": ("f:\nr0 = 0\ncall pc-2\nexit", "call", 1, "calls nest deeper than 8 frames"),
    "kernel function": ("call kfunc#77\nexit", "helper", 0, "kernel function"),
    "map as number": ("r1 = map[cells] ll\nr1 += 1\nr0 = 0\nexit", "arithmetic", 2,
                      "arithmetic on r1, which is a map"),
    "packet as key": ("r2 = 5\nr1 = map[cells] ll\ncall 1\nexit", "type", 3,
                      "r2 must point to memory, is a number"),
    "unsupported helper": ("call 9999\nexit", "helper", 0, "9999"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, kind, insn, message = REFUSED[case]
    obj = program(text)
    with pytest.raises(VerifyError, match=message) as caught:
        load(obj)
    error = caught.value
    assert error.exit_code == 4
    assert error.insn is not None and error.what == f"test: instruction {error.insn}"
    assert insn in (None, error.insn)
    (finding,) = verify(obj, obj.programs[0]).errors
    assert (finding.kind, finding.insn) == (kind, error.insn)


def test_an_endless_loop_ends_the_proof() -> None:
    """Its counter goes on, so no state repeats; the budget ends it."""
    obj = program("r0 = 2\nagain:\nr0 += 1\nif r0 != 1 goto again\nexit")
    (finding,) = verify(obj, obj.programs[0], time_budget_s=0.2).errors
    assert finding.kind == "budget" and "the proof took more than 0.2 s" in finding.text


def test_unsupported_map_type_is_named() -> None:
    odd = MapSpec("odd", MapType.CGROUP_STORAGE, 4, 4, 8)
    with pytest.raises(LoadError, match=r"map odd: map type 19 \(CGROUP_STORAGE\) is not"):
        load(program("r0 = 2\nexit", (odd,)))


# ---- lowered ---------------------------------------------------------------------------------

OBJECTS = [*sorted((ROOT / "examples").glob("*.o")),
           *sorted((ROOT / "tests/xdp_runtime/programs").glob("*.o"))]


def lowered(obj: Object, spec: ProgramSpec) -> str:
    facts = link.proven_facts(obj, spec)
    return Lowering(spec, 0, obj.maps, 1, [0], facts).lower().text


@cache
def lowered_programs(path: Path) -> dict[str, str]:
    obj = read_object(path)
    return {spec.name: lowered(obj, spec) for spec in obj.programs if spec.is_xdp}


def optimised(obj: Object) -> str:
    from xdp_runtime import repeat

    module, _, _ = link.build_module(obj, obj.program(), 1, [repeat.UNIT])
    target.optimise(module, 3)
    return str(module)


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_pointers_never_come_from_integers(path: Path) -> None:
    """But for the numbers that stand for maps, which nothing dereferences."""
    for name, text in lowered_programs(path).items():
        made = re.findall(r"inttoptr (.*)", text)
        assert all(re.fullmatch(r"i64 \d+ to ptr", one) for one in made), name


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_no_branch_that_the_program_did_not_ask_for(path: Path) -> None:
    """A conditional branch for each one of the program that can go both ways; bpf_tail_call may
    miss; that is all."""
    obj = read_object(path)
    for name, text in lowered_programs(path).items():
        spec = obj.program(name)
        facts = link.proven_facts(obj, spec)
        open_branches = sum(facts.falls[slot] and facts.taken[slot]
                            for slot, insn in enumerate(spec.insns) if isinstance(insn, JumpIf))
        tail_calls = sum(facts.visited[slot] for slot, insn in enumerate(spec.insns)
                         if insn == Call(12))
        assert text.count("br i1") == open_branches + tail_calls, name


def test_a_proven_access_adds_no_comparison() -> None:
    """Around a check alone, and around a check with accesses behind it: the same loop."""
    alone = optimised(program(checked(34, "r0 = 1"), ()))
    accesses = optimised(program(checked(34, "r0 = 1\n*(u8 *)(r2 + 33) = 7"), ()))
    assert accesses.count("icmp") == alone.count("icmp")


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_accesses_say_which_object_they_are_to(path: Path) -> None:
    """A number is loaded or stored in the run state, on the stack, or in a scope of its own."""
    for name, text in lowered_programs(path).items():
        if "getelementptr i8, ptr" in text or 'ptr @"map.' in text:
            assert "!alias.scope" in text, name
        for line in text.splitlines():
            assert ("!alias.scope" in line) == ("!noalias" in line), (name, line)


def test_packet_and_maps_are_different_objects() -> None:
    text = lowered(obj := program(checked(14, """
        r5 = *(u8 *)(r2 + 0)
        r8 = map_value[cells]+0 ll
        *(u8 *)(r8 + 0) = r5
    """), (MapSpec("cells", MapType.ARRAY, 4, 8, 1),)), obj.programs[0])
    (packet,) = re.findall(r"load i8, .* !alias.scope (!\d+), !noalias (!\d+)", text)
    (cells,) = re.findall(r"store i8 .* !alias.scope (!\d+), !noalias (!\d+)", text)
    metadata = dict(re.findall(r"^(!\d+) = !{(.*)}$", alias_scopes(len(obj.maps)), re.M))
    assert metadata[packet[0]] != metadata[cells[0]]
    assert metadata[packet[0]] in metadata[cells[1]]
    assert metadata[cells[0]] in metadata[packet[1]]


def test_dead_branches_are_not_emitted() -> None:
    obj = program("r1 = 5\nr0 = 1\nif r1 == 5 goto +2\nr0 = 12345\nexit\nr0 = 2\nexit")
    text = lowered(obj, obj.programs[0])
    assert "br i1" not in text and "12345" not in text


def test_a_branch_settled_by_a_range_is_not_emitted() -> None:
    obj = program(checked(1, "r5 = *(u8 *)(r2 + 0)\nif r5 > 255 goto +1\ngoto out\nr0 = 12345"))
    text = lowered(obj, obj.programs[0])
    assert text.count("br i1") == 1 and "12345" not in text


def test_rodata_is_constant() -> None:
    obj = program("r1 = map_value[.rodata]+0 ll\nr0 = *(u32 *)(r1 + 0)\nif r0 == 7 goto +1\n"
                  "r0 = 12345\nexit")
    text = lowered(obj, obj.programs[0])
    assert "ret i32 7" in text and "12345" not in text and "br i1" not in text
    assert not re.search(r"load i32, ptr %t\d+, align 1", text)


def test_code_is_cached_with_the_constants_in_it() -> None:
    """Two objects that differ in .rodata alone are two programs."""
    for value in (7, 9):
        rodata = replace(RODATA, initial=value.to_bytes(8, "little"))
        obj = program("r1 = map_value[.rodata]+0 ll\nr0 = *(u32 *)(r1 + 0)\nexit", (rodata,))
        with load(obj) as running:
            assert running.run(bytes(64)).retval == value


def test_a_register_that_nobody_reads_is_not_kept() -> None:
    """r6 is a pointer on one path and a number on the other; where they meet it is neither."""
    kept = checked(14, "r6 = r2\nr5 = *(u8 *)(r2 + 0)\nif r5 == 1 goto out\nr0 = 1").replace(
        "r0 = 2", "r0 = 2\nr6 = r0")
    text = lowered(obj := program(kept), obj.programs[0])
    assert "ptr %r6" not in text and "ptr %r5" not in text
    read = kept.replace("out:", "out:\nr0 = 0\nif r6 == 2 goto +1\nr0 = 1")
    text = lowered(obj := program(read), obj.programs[0])
    assert re.search(r"store i64 %t\d+, ptr %r6_0\.i", text)


def test_a_checked_lookup_is_checked_once() -> None:
    obj = program(lookup("table", 3) + "if r0 == 0 goto +1\nr0 = *(u64 *)(r0 + 0)\nexit")
    assert lowered(obj, obj.programs[0]).count("icmp") == 1


def test_proven_pointers_are_never_integers() -> None:
    text = lowered(obj := program(checked(14, "r0 = *(u8 *)(r2 + 13)")), obj.programs[0])
    assert "inttoptr" not in text
    numbers = re.findall(r"(%t\d+) = ptrtoint", text)  # the packet's length, of the comparison
    assert len(numbers) == 2 and all(
        re.findall(rf"= (\w+) [^\n]*{one}\b", text) == ["sub"] for one in numbers)


def test_a_proven_index_drops_the_check_of_an_array_lookup() -> None:
    """A constant key is a constant address: neither compared with the size nor with null."""
    then = "if r0 == 0 goto +1\n*(u64 *)(r0 + 0) = 77\nr0 = 1\nexit"
    alone = optimised(program("r0 = 1\nexit", (ARRAY,)))
    found = optimised(program(lookup("cells", 2) + then, (ARRAY,)))
    assert re.search(r'store i64 77, ptr getelementptr .*@"?map.0.values"?, i64 32\)', found)
    assert found.count("icmp") == alone.count("icmp")
    missed = optimised(program(lookup("cells", 4) + then, (ARRAY,)))
    assert "i64 77" not in missed


@pytest.mark.parametrize("opt", target.TESTED)
def test_a_callback_of_no_rounds_that_loops_itself(opt: int) -> None:
    obj = program("""
        r1 = 0
        r2 = func[+6] ll
        r3 = 0
        r4 = 0
        call bpf_loop#181
        r0 += 2
        exit
        r1 = 3
        r2 = func[+6] ll
        r3 = 0
        r4 = 0
        call bpf_loop#181
        r0 = 0
        exit
        r0 = 0
        exit
    """)
    obj = replace(obj, btf=Btf.parse(typed(obj.programs[0].insns)[0]), programs=(replace(
        obj.programs[0], functions=(
            Function("test", 0, 8), Function("outer", 8, 16), Function("inner", 16, 18))),))
    with load(obj, opt=opt) as loaded:
        assert loaded.run(bytes(64)).retval == 2
