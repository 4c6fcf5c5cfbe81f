"""What lowering refuses, what it checks at run time, and what it leaves to LLVM.

Programs here are such as the kernel would refuse: nothing proves them safe, so run-time checks
must.  None of them may crash, hang, or read or write outside its objects."""

from __future__ import annotations

import pytest

from xdp_runtime.asm import assemble
from xdp_runtime.compiler import link, target
from xdp_runtime.errors import LoadError, VerifyError
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load
from xdp_runtime.state import Fault, Verdict

ARRAY = MapSpec("cells", MapType.ARRAY, 4, 16, 4)
TABLE = MapSpec("table", MapType.HASH, 4, 8, 4)
CONSTANTS = MapSpec("constants", MapType.ARRAY, 4, 16, 1, flags=MapFlag.RDONLY_PROG)
MAPS = (ARRAY, TABLE, CONSTANTS)


def program(text: str, maps: tuple[MapSpec, ...] = MAPS) -> Object:
    insns = assemble(text, [m.name for m in maps])
    return Object("test", (ProgramSpec("test", "xdp", "xdp", insns),), maps, "GPL")


def loaded(text: str, opt: int = 3) -> Program:
    return load(program(text), opt=opt)


def lookup(name: str, key: int) -> str:
    return f"""
        *(u32 *)(r10 - 4) = {key}
        r2 = r10
        r2 += -4
        r1 = map[{name}] ll
        call 1
    """


FAULTS = {
    "read behind the packet": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u8 *)(r2 + 100)\nexit", Fault.BOUNDS, 1),
    "read across the end": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u64 *)(r2 + 57)\nexit", Fault.BOUNDS, 1),
    "read before the packet": (
        "r2 = *(u32 *)(r1 + 0)\nr0 = *(u8 *)(r2 - 1)\nexit", Fault.BOUNDS, 1),
    "write behind the packet": (
        "r2 = *(u32 *)(r1 + 0)\n*(u32 *)(r2 + 61) = 1\nr0 = 2\nexit", Fault.BOUNDS, 1),
    "address that wraps": (
        "r2 = *(u32 *)(r1 + 0)\nr3 = -1 ll\nr2 += r3\nr0 = *(u8 *)(r2 + 0)\nexit",
        Fault.BOUNDS, 4),
    "huge offset": (
        "r2 = *(u32 *)(r1 + 0)\nr3 = 0x7fffffffffffffff ll\nr2 += r3\n"
        "r0 = *(u64 *)(r2 + 0)\nexit", Fault.BOUNDS, 4),
    "offset from the packet": (
        "r2 = *(u32 *)(r1 + 0)\nr3 = *(u8 *)(r2 + 0)\nr2 += r3\nr0 = *(u8 *)(r2 + 0)\nexit",
        Fault.BOUNDS, 3),
    "lookup result not checked": (
        lookup("table", 1) + "r0 = *(u64 *)(r0 + 0)\nexit", Fault.NULL, 6),
    "index into a map value": (
        "r6 = *(u32 *)(r1 + 0)\nr6 = *(u8 *)(r6 + 0)\n" + lookup("cells", 1)
        + "if r0 == 0 goto +2\nr0 += r6\nr0 = *(u8 *)(r0 + 0)\nexit", Fault.BOUNDS, 10),
    "negative index into a map value": (
        lookup("cells", 1) + "if r0 == 0 goto out\nr1 = -8 ll\nr0 += r1\nr0 = *(u8 *)(r0 + 0)\n"
        "out:\nexit", None, 0),
    "index into the stack": (
        "r6 = *(u32 *)(r1 + 0)\nr6 = *(u8 *)(r6 + 0)\nr7 = r10\nr7 += -8\nr7 += r6\n"
        "*(u8 *)(r7 + 0) = 1\nr0 = 2\nexit", Fault.BOUNDS, 5),
    "endless loop": ("r0 = 2\nagain:\nr0 += 1\ngoto again\nexit", Fault.BUDGET, 2),
    "stack or map value": (
        "r6 = *(u32 *)(r1 + 0)\nr6 = *(u8 *)(r6 + 0)\n" + lookup("cells", 1)
        + "if r0 == 0 goto out\nif r6 == 3 goto +2\nr0 = r10\nr0 += -8\nr0 = *(u64 *)(r0 + 8)\n"
        "out:\nexit", Fault.BOUNDS, 12),
    "misaligned atomic": (
        "r6 = *(u32 *)(r1 + 0)\nr6 = *(u8 *)(r6 + 0)\nr6 &= 7\n" + lookup("cells", 1)
        + "if r0 == 0 goto +3\nr1 = 1\nr0 += r6\nlock *(u64 *)(r0 + 0) += r1\nr0 = 2\nexit",
        Fault.BOUNDS, 12),
}


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("case", FAULTS)
def test_unproven_access_stops_the_program(case: str, opt: int) -> None:
    text, fault, insn = FAULTS[case]
    if fault is None:
        with pytest.raises(VerifyError, match="outside the value of map cells"):
            loaded(text, opt)
        return
    with loaded(text, opt) as running:
        result = running.run(b"\xfb" * 64)
        assert (result.verdict, result.fault, result.fault_insn) == (Verdict.ABORTED, fault, insn)
        assert result.data_out == b"\xfb" * 64


REFUSED = {
    "number dereferenced": ("r2 = 4096\nr0 = *(u8 *)(r2 + 0)\nexit", "r2 is a number"),
    "uninitialised register": ("r0 = r3\nexit", "r3 is read but was never written"),
    "no verdict": ("exit", "r0 is read but was never written"),
    "pointer as verdict": ("r0 = r10\nexit", "r0 .stack pointer. is no verdict"),
    "context written": ("r0 = 0\n*(u32 *)(r1 + 0) = 1\nexit", "xdp_md is read-only"),
    "odd context field": ("r0 = *(u32 *)(r1 + 2)\nexit", "offset 2 of struct xdp_md"),
    "behind the context": ("r0 = *(u32 *)(r1 + 24)\nexit", "offset 24 of struct xdp_md"),
    "outside the stack": ("r0 = *(u8 *)(r10 + 0)\nexit", "outside the 512 bytes of stack"),
    "below the stack": ("r0 = *(u64 *)(r10 - 520)\nexit", "outside the 512 bytes of stack"),
    "r10 written": ("r10 = 1\nr0 = 0\nexit", "frame pointer r10 is read-only"),
    "outside a map value": (lookup("cells", 0) + "r0 = *(u64 *)(r0 + 9)\nexit",
                            "offset 9 are outside the value of map cells .16 bytes."),
    "read-only map": ("r1 = map_value[constants]+0 ll\n*(u8 *)(r1 + 0) = 1\nr0 = 0\nexit",
                      "map constants is read-only"),
    "clobbered by a call": ("call 5\nr0 = r1\nexit", "r1 is read but was overwritten by a call"),
    "stale packet pointer": (
        "r6 = *(u32 *)(r1 + 0)\nr2 = -8\ncall 44\nr0 = *(u8 *)(r6 + 0)\nexit",
        "r6 is read but points into the packet as it was"),
    "multiplied pointer": ("r10 *= 2\nr0 = 0\nexit", "r10 is read-only"),
    "pointer and": ("r2 = r10\nr2 &= 7\nr0 = 0\nexit", "and on a pointer .stack pointer."),
    "two kinds at a join": (
        "r2 = *(u32 *)(r1 + 0)\nr2 = *(u8 *)(r2 + 0)\nr3 = r10\nif r2 == 0 goto +1\nr3 = 5\n"
        "r0 = *(u8 *)(r3 - 1)\nexit",
        "r3 is read but holds different kinds of values on different paths"),
    "jump out of the program": ("r0 = 0\nif r0 == 0 goto +7\nexit", "leaves the program"),
    "falls off the end": ("r0 = 0", "execution leaves the program at slot 1"),
    "jump into a load": ("r0 = 0\nif r0 == 0 goto +1\nr1 = 5 ll\nexit", "middle of a 64-bit load"),
    "recursion": ("f:\nr0 = 0\ncall pc-2\nexit", "nest deeper than 8 frames, or recurse"),
    "kernel function": ("call kfunc#77\nexit", "kernel function"),
    "map as number": ("r1 = map[cells] ll\nr1 += 1\nr0 = 0\nexit", "arithmetic on a pointer .map."),
    "packet as key": ("r2 = 5\nr1 = map[cells] ll\ncall 1\nexit", "r2 is a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(VerifyError, match=message) as caught:
        loaded(text)
    assert caught.value.insn is not None
    assert caught.value.exit_code == 4


def test_unsupported_helper_is_named() -> None:
    with pytest.raises(LoadError, match=r"instruction 0: helper bpf_fib_lookup \(number 69\)"):
        loaded("call 69\nexit")


def test_unsupported_map_type_is_named() -> None:
    odd = MapSpec("odd", MapType.BLOOM_FILTER, 0, 4, 8)
    with pytest.raises(LoadError, match=r"map odd: map type 30 \(BLOOM_FILTER\) is not supported"):
        load(program("r0 = 2\nexit", (odd,)))


def optimised(obj: Object) -> str:
    from xdp_runtime import repeat

    module, _, _ = link.build_module(obj, obj.program(), 1, [repeat.UNIT])
    target.optimise(module, 3)
    return str(module)


def test_the_programs_own_check_replaces_ours() -> None:
    """A packet access behind the usual `data + n <= data_end` keeps no check of ours."""
    text = """
        r2 = *(u32 *)(r1 + 0)
        r3 = *(u32 *)(r1 + 4)
        r4 = r2
        r4 += 34
        r0 = 1
        if r4 > r3 goto out
        r5 = *(u16 *)(r2 + 12)
        *(u8 *)(r2 + 33) = r5
        r0 = 2
    out:
        exit
    """
    ir = optimised(program(text, ()))
    assert "store i32 1, ptr" not in ir  # Fault.BOUNDS is never recorded
    one_too_far = optimised(program(text.replace("r2 + 33", "r2 + 34"), ()))
    assert one_too_far.count("icmp") > ir.count("icmp")


def test_a_checked_lookup_keeps_no_null_check() -> None:
    ir = optimised(program(lookup("table", 3) + "if r0 == 0 goto +1\nr0 = *(u64 *)(r0 + 0)\nexit"))
    assert "store i32 2, ptr" not in ir


def test_proven_pointers_are_never_integers() -> None:
    from xdp_runtime.compiler.lower import Lowering

    obj = program("r2 = *(u32 *)(r1 + 0)\nr3 = *(u32 *)(r1 + 4)\nr4 = r2\nr4 += 14\nr0 = 1\n"
                  "if r4 > r3 goto +1\nr0 = *(u8 *)(r2 + 13)\nexit")
    text = Lowering(obj.programs[0], 0, obj.maps, 1, [0]).lower().text
    assert "inttoptr" not in text
    assert "ptrtoint" not in text
