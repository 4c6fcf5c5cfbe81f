"""Text and instructions are each other's inverse, and the text is llvm-objdump's."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xdp_runtime.insns import INSNS, as_slots
from xdp_runtime import isa
from xdp_runtime.disasm import assemble, format_insn, format_program
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import HELPER_NUMBERS
from xdp_runtime.isa import AtomicOp, Imm, Insn, JmpOp, Reg, SwapOrder
from xdp_runtime.object import Line, MapSpec, Object, ProgramSpec

OBJECTS = Path(__file__).parent / "objects"
READABLE = ["alu", "globals", "legacy", "maps", "multi", "pass"]


@given(st.lists(INSNS, max_size=20))
def test_assemble_inverts_format(insns: list[Insn]) -> None:
    slots = as_slots(insns)
    assert assemble("\n".join(format_insn(i) for i in insns)) == slots
    with_targets = [format_insn(i, slot) for slot, i in enumerate(slots) if i is not None]
    assert assemble("\n".join(with_targets)) == slots


@pytest.mark.parametrize(("insn", "text"), [
    (isa.Mov(True, 1, Reg(2)), "r1 = r2"),
    (isa.Alu(isa.AluOp.ADD, False, 0, Imm(3)), "w0 += 3"),
    (isa.Alu(isa.AluOp.SDIV, True, 1, Reg(2)), "r1 s/= r2"),
    (isa.Alu(isa.AluOp.ARSH, True, 1, Imm(2)), "r1 s>>= 2"),
    (isa.Mov(False, 1, Reg(2), 16), "w1 = (s16)w2"),
    (isa.AddressCast(1, 2, True), "r1 = addr_space_cast(r2, 0x1, 0x0)"),
    (isa.Neg(True, 4), "r4 = -r4"),
    (isa.Swap(1, 16, SwapOrder.SWAP), "r1 = bswap16 r1"),
    (isa.Store(10, -4, 4, Reg(1)), "*(u32 *)(r10 - 4) = r1"),
    (isa.Store(10, -8, 8, Imm(-1)), "*(u64 *)(r10 - 8) = -1"),
    (isa.Load(0, 1, 0, 1), "r0 = *(u8 *)(r1 + 0)"),
    (isa.Load(0, 1, 6, 2, True), "r0 = *(s16 *)(r1 + 6)"),
    (isa.JumpIf(JmpOp.GT, True, 1, Reg(2), 5), "if r1 > r2 goto +5"),
    (isa.JumpIf(JmpOp.SLE, False, 1, Imm(-2), -5), "if w1 s<= -2 goto -5"),
    (isa.JumpIf(JmpOp.SET, True, 1, Imm(4), 1), "if r1 & 4 goto +1"),
    (isa.Call(1), "call bpf_map_lookup_elem#1"),
    (isa.Call(0), "call 0"),
    (isa.Call(4000), "call 4000"),
    (isa.CallLocal(-3), "call pc-3"),
    (isa.CallKfunc(77, 2), "call kfunc#77@2"),
    (isa.Jump(3), "goto +3"),
    (isa.Jump(70000, long=True), "gotol +70000"),
    (isa.MayGoto(2), "may_goto +2"),
    (isa.LoadImm64(1, 0xDEAD), "r1 = 0xdead ll"),
    (isa.LoadMap(1, 2), "r1 = map[2] ll"),
    (isa.LoadMapValue(1, 2, 8), "r1 = map_value[2]+8 ll"),
    (isa.LoadFunc(1, 9), "r1 = func[+9] ll"),
    (isa.Atomic(AtomicOp.ADD, 8, 1, 0, 2, False), "lock *(u64 *)(r1 + 0) += r2"),
    (isa.Atomic(AtomicOp.OR, 4, 1, 8, 2, True), "w2 = atomic_fetch_or((u32 *)(r1 + 8), w2)"),
    (isa.Atomic(AtomicOp.XCHG, 8, 1, 8, 2, True), "r2 = xchg_64(r1 + 8, r2)"),
    (isa.Atomic(AtomicOp.CMPXCHG, 4, 1, 8, 2, True), "w0 = cmpxchg32_32(r1 + 8, w0, w2)"),
    (isa.LoadAcquire(1, 2, 0, 4), "w1 = load_acquire((u32 *)(r2 + 0))"),
    (isa.StoreRelease(1, 0, 8, 2), "store_release((u64 *)(r1 + 0), r2)"),
    (isa.Exit(), "exit"),
])
def test_notation(insn: Insn, text: str) -> None:
    assert format_insn(insn) == text


def test_slot_adds_the_target_and_object_the_map() -> None:
    one = MapSpec("flows", 1, 4, 4, 1)
    obj = Object("o", (), (one,))
    assert format_insn(isa.Jump(3), slot=4) == "goto +3 <8>"
    assert format_insn(isa.LoadMap(1, 0), object=obj) == "r1 = map[flows] ll"
    twice = Object("o", (), (one, one))
    assert format_insn(isa.LoadMap(1, 0), object=twice) == "r1 = map[0] ll"


@pytest.mark.parametrize("name", READABLE)
def test_whole_programs_survive_the_round_trip(name: str) -> None:
    obj = read_object(OBJECTS / f"{name}.o")
    for spec in obj.programs:
        text = format_program(spec, obj)
        assert assemble(text, [m.name for m in obj.maps]) == spec.insns


def test_program_text_shows_functions_and_source_once_a_line() -> None:
    obj = read_object(OBJECTS / "globals.o")
    spec = obj.program("xdp_globals")
    text = format_program(spec, obj)
    lines = text.splitlines()
    assert lines[:3] == ["xdp_globals:", "; int xdp_globals(struct xdp_md *ctx) @ globals.c:58",
                         "     0: r6 = r1"]
    assert "    28: call pc+34 <classify>" in lines
    assert "    13: r2 = func[+27] ll <visit>" in lines
    assert "     1: r1 = map_value[.data]+0 ll" in lines
    assert not any(a == b and a.startswith(";") for a, b in pairwise(lines))
    assert ";" not in format_program(spec, obj, source=False)


def test_source_line_cannot_break_out_of_its_comment() -> None:
    line = Line(0, "a\nb.c", 1, 1, "x;\nr0 = 7\x1b[0m")
    spec = ProgramSpec("p", "xdp", "xdp", (isa.Exit(),), lines=(line,))
    assert assemble(format_program(spec)) == (isa.Exit(),)
    assert "\x1b" not in format_program(spec)


def test_labels_and_helper_names() -> None:
    assert assemble("""
        if r1 == 0 goto out     ; forward
        call bpf_ktime_get_ns
        call f
        r2 = func[f] ll
        r3 = map[m] ll
    out:
        exit
    f:
        goto out                ; backward
    """, maps=["other", "m"]) == (
        isa.JumpIf(JmpOp.EQ, True, 1, Imm(0), 6), isa.Call(HELPER_NUMBERS["bpf_ktime_get_ns"]),
        isa.CallLocal(5), isa.LoadFunc(2, 4), None, isa.LoadMap(3, 1), None, isa.Exit(),
        isa.Jump(-2))


def test_newer_llvm_spells_narrow_registers() -> None:
    assert assemble("w1 = *(u32 *)(r2 + 4)\n*(u8 *)(r2 + 0) = w3") == (
        isa.Load(1, 2, 4, 4), isa.Store(2, 0, 1, Reg(3)))


@pytest.mark.parametrize(("text", "why"), [
    ("r1 = r11", "register r11 does not exist"),
    ("r1 += w2", "w2 is not a r register"),
    ("exit\n\nr1 ?= 3", "line 3: cannot parse"),
    ("r1 = 0x100000000", "does not fit in 32 bits"),
    ("r1 = 0x80000000", "does not fit in 32 bits"),
    ("r1 = 0x10000000000000000 ll", "does not fit in 64 bits"),
    ("goto nowhere", "unknown name nowhere"),
    ("goto +40000", "does not fit in 16 bits"),
    ("r1 = *(u8 *)(r2 + 40000)", "does not fit in 16 bits"),
    ("r1 = map[nothing] ll", "unknown map nothing"),
    ("call bpf_nothing", "unknown name bpf_nothing"),
    ("call kfunc#x", "invalid literal"),
    ("a:\na:\nexit", "already defined"),
    ("r1 = -r2", "must be the same register"),
    ("r2 = atomic_fetch_add((u32 *)(r1 + 0), r2)", "not a 32-bit register"),
    ("lock *(u8 *)(r1 + 0) += r2", "atomic operation on 8 bits"),
    ("w1 = (s32)w2", "no such extension"),
    ("r1 = *(s64 *)(r2 + 0)", "no such load"),
])
def test_bad_text_is_refused_by_line(text: str, why: str) -> None:
    with pytest.raises(LoadError, match=re.escape(why)) as error:
        assemble(text)
    assert error.value.what.startswith("line ")


def test_unsigned_numbers_for_narrow_registers() -> None:
    assert assemble("w1 &= 0xff0000ff") == (isa.Alu(isa.AluOp.AND, False, 1, Imm(-16776961)),)


@given(st.text(alphabet="rw01 =+-*/&|<>()[]u3248lockgotexifmap_:;#\n", max_size=60))
def test_arbitrary_text_never_crashes(text: str) -> None:
    try:
        assemble(text)
    except LoadError:
        pass


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.skipif(not shutil.which("llvm-objdump"), reason="needs llvm-objdump")
def test_same_text_as_llvm_objdump(name: str) -> None:
    """Slot by slot, of the entry functions; relocated loads and calls look different by nature."""
    dump = subprocess.run(
        ["llvm-objdump", "-d", "--mattr=+alu32", "--no-show-raw-insn", OBJECTS / f"{name}.o"],
        capture_output=True, text=True, check=True).stdout
    theirs: dict[str, dict[int, str]] = {}
    function, base = "", 0
    for line in dump.splitlines():
        if header := re.fullmatch(r"([0-9a-f]+) <(.*)>:", line):
            if not header[2].startswith("LBB"):
                function, base = header[2], int(header[1], 16) // 8
                theirs[function] = {}
        elif code := re.fullmatch(r"\s*(\d+):\t(.*?)(?: <.*>)?", line):
            theirs[function][int(code[1]) - base] = code[2]
    compared = 0
    for spec in read_object(OBJECTS / f"{name}.o").programs:
        for slot, insn in enumerate(spec.insns[:spec.functions[0].end]):
            if insn is None:
                continue
            want = theirs[spec.name][slot]
            if isinstance(insn, isa.LoadMap | isa.LoadMapValue | isa.LoadFunc | isa.CallLocal):
                continue
            if isinstance(insn, isa.Call):
                assert want == f"call {insn.helper}"
            elif isinstance(insn, isa.LoadImm64):
                assert want == f"r{insn.dst} = {insn.value} ll"
            elif isinstance(insn, isa.Load | isa.Store | isa.Atomic):
                assert assemble(want) == (insn,)  # it may write w where r does as well
            else:
                assert format_insn(insn) == want
            compared += 1
    assert compared >= 2
