"""bpf_tail_call from called functions: interpreter = compiled O0 = compiled O3 = kernel."""

from __future__ import annotations

import pytest

from tests.privileges import bpf_refusal
from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.compiler import target
from xdp_runtime.errors import VerifyError
from xdp_runtime.interp import Machine
from xdp_runtime.isa import MAX_TAIL_CALLS
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import load

OTHER, MAIN, THIRD, EMPTY = range(4)
JUMPS = MapSpec("jumps", MapType.PROG_ARRAY, 4, 4, 4,
                slots=((OTHER, "other"), (MAIN, "main"), (THIRD, "third")))
SEEN = MapSpec("seen", MapType.ARRAY, 4, 8, 1)
PACKET = bytes(range(64))


def jump(index: int, context: str = "r1") -> str:
    """What a function ends with: the tail call, and 7 where it fails."""
    return (f"r1 = {context}\nr2 = map[jumps] ll\nr3 = {index}\ncall bpf_tail_call\n"
            "r0 = 7\nexit\n")


COUNT = """
    *(u32 *)(r10 - 4) = 0
    r2 = r10
    r2 += -4
    r1 = map[seen] ll
    call bpf_map_lookup_elem
    if r0 == 0 goto +2
    r1 = 1
    lock *(u64 *)(r0 + 0) += r1
"""
ANY = "r0 = 5\nexit\n"
# name: (main, other, third, expected r0)
CASES = {
    "taken": ("call f\nr0 += 1000\nexit\nf:\n" + jump(OTHER), ANY, ANY, 1005),
    "missed": ("call f\nr0 += 1000\nexit\nf:\n" + jump(EMPTY), ANY, ANY, 1007),
    "all 64 bits come back": ("call f\nr0 >>= 32\nexit\nf:\n" + jump(OTHER),
                              "r0 = 0x300000002 ll\nexit\n", ANY, 3),
    "registers and stack stay": (
        "r6 = 1\nr7 = 20\nr8 = 300\nr9 = 4000\n*(u64 *)(r10 - 8) = 50000\ncall f\n"
        "r0 += r6\nr0 += r7\nr0 += r8\nr0 += r9\nr1 = *(u64 *)(r10 - 8)\nr0 += r1\nexit\n"
        "f:\nr6 = r1\n" + jump(OTHER, "r6"),
        "r6 = 9\nr7 = 9\nr8 = 9\nr9 = 9\n*(u64 *)(r10 - 8) = 9\n*(u64 *)(r10 - 64) = 9\n" + ANY,
        ANY, 54326),
    "two functions deep": (
        "call f\nr0 += 1000\nexit\n"
        "f:\nr6 = 20\ncall g\nr0 += r6\nexit\ng:\n" + jump(OTHER), ANY, ANY, 1025),
    "what is called goes on": ("call f\nr0 += 1000\nexit\nf:\n" + jump(OTHER), jump(THIRD),
                               "r0 = 11\nexit\n", 1011),
    "itself, until the limit": ("call f\nr0 += 1\nexit\nf:\n" + jump(MAIN), ANY, ANY,
                                MAX_TAIL_CALLS + 1 + 7),
    "the limit is of all together": (
        "r6 = r1\ncall f\nr1 = r6\ncall f\n" + COUNT + "r0 = 2\nexit\nf:\n" + jump(MAIN),
        ANY, ANY, 2),
    "back and forth": ("r6 = r1\n" + COUNT + "r1 = r6\ncall f\nr0 += 1\nexit\nf:\n" + jump(OTHER),
                       "r6 = r1\n" + COUNT + jump(MAIN, "r6"), ANY, None),
    "the packet moves": (
        "r6 = r1\ncall f\nr1 = *(u32 *)(r6 + 0)\nr2 = *(u32 *)(r6 + 4)\nr3 = r1\nr3 += 14\n"
        "if r3 > r2 goto +2\nr0 = *(u8 *)(r1 + 0)\nexit\nr0 = 1\nexit\nf:\n" + jump(OTHER),
        "r2 = 5\ncall bpf_xdp_adjust_head\n" + ANY, ANY, 5),
}


def an_object(main: str, other: str, third: str) -> Object:
    maps = (JUMPS, SEEN)
    texts = {"main": main, "other": other, "third": third}
    programs = tuple(ProgramSpec(name, "xdp", "xdp", assemble(text, [m.name for m in maps]))
                     for name, text in texts.items())
    types = typed(programs[0].insns)[0]
    return Object("tail_calls", programs, maps, "GPL", btf=Btf.parse(types) if types else None)


def interpreted(obj: Object) -> tuple[int, bytes, dict[bytes, bytes]]:
    machine = Machine(obj, obj.program("main"), budget=100_000)
    result = machine.run(PACKET)
    return result.verdict, result.data_out, dict(machine.maps[1].items())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("opt", target.TESTED)
def test_compiled(name: str, opt: int) -> None:
    main, other, third, expected = CASES[name]
    obj = an_object(main, other, third)
    ours = interpreted(obj)
    assert expected in (None, ours[0])
    with load(obj, "main", opt=opt) as program:
        result = program.run(PACKET)
        assert (result.retval, result.data_out, dict(program.raw_maps["seen"].items())) == ours


@pytest.mark.root
@pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel loads no program: {bpf_refusal()}")
@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str) -> None:
    main, other, third, _ = CASES[name]
    obj = an_object(main, other, third)
    with load_into_kernel(obj, "main") as program:
        result = program.run(PACKET)
        seen = dict(program.maps["seen"].items())
    assert (result.retval, result.data_out, seen) == interpreted(obj)


def test_a_deep_stack_is_refused() -> None:
    """256 bytes of callers' stack at most, as the kernel says."""
    main = "*(u64 *)(r10 - {}) = 1\ncall f\nexit\nf:\n" + jump(OTHER)
    with load(an_object(main.format(224), ANY, ANY), "main") as program:
        assert program.run(PACKET).retval == 5
    deep = an_object(main.format(256), ANY, ANY)
    with pytest.raises(VerifyError, match="256"):
        load(deep, "main")


@pytest.mark.root
@pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel loads no program: {bpf_refusal()}")
def test_a_deep_stack_in_the_kernel() -> None:
    main = "*(u64 *)(r10 - {}) = 1\ncall f\nexit\nf:\n" + jump(OTHER)
    load_into_kernel(an_object(main.format(224), ANY, ANY), "main").close()
    with pytest.raises(VerifyError, match="256"):
        load_into_kernel(an_object(main.format(256), ANY, ANY), "main")


CALLBACK = ("*(u64 *)(r10 - 8) = r1\nr1 = 3\nr2 = func[visit] ll\nr3 = r10\nr3 += -8\nr4 = 0\n"
            "call bpf_loop\nr0 = 2\nexit\nvisit:\nr1 = *(u64 *)(r2 + 0)\n" + jump(OTHER))


def test_not_in_a_callback() -> None:
    """Its result would be the next program's, which is anything."""
    with pytest.raises(VerifyError, match="callback returns 0 or 1"):
        load(an_object(CALLBACK, ANY, ANY), "main")


@pytest.mark.root
@pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel loads no program: {bpf_refusal()}")
def test_not_in_a_callback_in_the_kernel() -> None:
    with pytest.raises(VerifyError, match="callback"):
        load_into_kernel(an_object(CALLBACK, ANY, ANY), "main")
