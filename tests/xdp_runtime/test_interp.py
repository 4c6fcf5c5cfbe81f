"""The interpreter by hand: every class of instruction at its edges, and every way to trap."""

from __future__ import annotations

import random
import struct

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import agree, interpret, one_program, packet_in, slots
from xdp_runtime.interp import Machine, Trap, TrapKind
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Call,
    CallKfunc,
    CallLocal,
    CallReg,
    Exit,
    Imm,
    Insn,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    LoadAcquire,
    LoadFunc,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    MayGoto,
    Mov,
    Neg,
    Reg,
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object, ProgramSpec

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
INT_MIN, INT32_MIN = 1 << 63, 1 << 31
EDGES = (0, 1, 2, 31, 32, 63, 64, 0x7FFFFFFF, 0x80000000, U32, 1 << 32, (1 << 63) - 1, 1 << 63,
         U64, U64 - 1, 0x0123456789ABCDEF, 0xFEDCBA9876543210)
ARRAY = MapSpec("values", MapType.ARRAY, 4, 8, 2)
HASH = MapSpec("table", MapType.HASH, 4, 8, 2)
PROGRAMS = MapSpec("programs", MapType.PROG_ARRAY, 4, 4, 4)


def r0_of(*insns: Insn, packet: bytes = bytes(64), maps: tuple[MapSpec, ...] = ()) -> int:
    return interpret([*insns, Exit()], packet, maps).r0


def trap_of(*insns: Insn, packet: bytes = bytes(64), maps: tuple[MapSpec, ...] = ()) -> TrapKind:
    with pytest.raises(Trap) as caught:
        interpret(insns, packet, maps)
    assert caught.value.insn >= 0 and str(caught.value).startswith(
        f"instruction {caught.value.insn}: {caught.value.kind.value}: ")
    kind: TrapKind = caught.value.kind
    return kind


# --- arithmetic ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("op", "a", "b", "wide", "narrow"), [
    (AluOp.ADD, U64, 2, 1, 1),
    (AluOp.SUB, 0, 1, U64, U32),
    (AluOp.MUL, 1 << 33, 1 << 33, 0, 0),
    (AluOp.DIV, U64, 0, 0, 0),
    (AluOp.MOD, U64, 0, U64, U32),
    (AluOp.DIV, 7 | 1 << 40, 2, (7 | 1 << 40) // 2, 3),
    (AluOp.SDIV, U64 - 6, 2, U64 - 2, U32 - 2),  # -7 / 2 = -3
    (AluOp.SMOD, U64 - 6, 2, U64, U32),  # -7 % 2 = -1
    (AluOp.SMOD, 7, U64 - 1, 1, 1),  # 7 % -2 = 1
    (AluOp.SDIV, INT_MIN, U64, INT_MIN, 0),
    (AluOp.SMOD, INT_MIN, U64, 0, 0),
    (AluOp.SDIV, INT32_MIN, U64, U64 - INT32_MIN + 1, INT32_MIN),
    (AluOp.SDIV, 5, 0, 0, 0),
    (AluOp.SMOD, U64, 0, U64, U32),
    (AluOp.OR, 1 << 40, 6, 1 << 40 | 6, 6),
    (AluOp.AND, U64, 0xF0, 0xF0, 0xF0),
    (AluOp.XOR, U64, 1, U64 - 1, U32 - 1),
    (AluOp.LSH, 1, 64 + 33, 1 << 33, 2),
    (AluOp.RSH, U64, 33, U64 >> 33, U32 >> 1),
    (AluOp.ARSH, INT_MIN, 63, U64, 0),
    (AluOp.ARSH, INT32_MIN, 31, 1, U32),
])
def test_alu(op: AluOp, a: int, b: int, wide: int, narrow: int) -> None:
    for is64, expected in ((True, wide), (False, narrow)):
        assert r0_of(LoadImm64(0, a), LoadImm64(1, b), Alu(op, is64, 0, Reg(1))) == expected


def test_immediates_are_sign_extended() -> None:
    assert r0_of(Mov(True, 0, Imm(-1))) == U64
    assert r0_of(Mov(False, 0, Imm(-1))) == U32
    assert r0_of(Mov(True, 0, Imm(0)), Alu(AluOp.OR, True, 0, Imm(-2))) == U64 - 1


@pytest.mark.parametrize(("is64", "bits", "expected"), [
    (True, 8, U64 - 0x0F), (True, 16, 0x7FF0), (True, 32, U64 - 0x7FFF800F),
    (False, 8, U32 - 0x0F), (False, 16, 0x7FF0), (True, 0, 0x80007FF0 | 1 << 40),
    (False, 0, 0x80007FF0)])
def test_mov(is64: bool, bits: int, expected: int) -> None:
    assert r0_of(LoadImm64(1, 0x80007FF0 | 1 << 40), Mov(is64, 0, Reg(1), bits)) == expected


def test_neg() -> None:
    assert r0_of(Mov(True, 0, Imm(1)), Neg(True, 0)) == U64
    assert r0_of(LoadImm64(0, 1 << 40 | 1), Neg(False, 0)) == U32
    assert r0_of(LoadImm64(0, INT_MIN), Neg(True, 0)) == INT_MIN


@pytest.mark.parametrize(("order", "bits", "expected"), [
    (SwapOrder.LE, 16, 0x8877), (SwapOrder.LE, 32, 0x66558877), (SwapOrder.BE, 16, 0x7788),
    (SwapOrder.BE, 32, 0x77885566), (SwapOrder.SWAP, 16, 0x7788),
    (SwapOrder.SWAP, 64, 0x7788556633441122), (SwapOrder.LE, 64, 0x2211443366558877)])
def test_swap(order: SwapOrder, bits: int, expected: int) -> None:
    assert r0_of(LoadImm64(0, 0x2211443366558877), Swap(0, bits, order)) == expected


# --- jumps ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("op", "a", "b", "wide", "narrow"), [
    (JmpOp.EQ, 1 << 32, 0, False, True), (JmpOp.NE, 1 << 32, 0, True, False),
    (JmpOp.GT, U64, 1, True, True), (JmpOp.SGT, U64, 1, False, False),
    (JmpOp.GE, 5, 5, True, True), (JmpOp.SGE, INT32_MIN, 0, True, False),
    (JmpOp.LT, 1 << 32, 1, False, True), (JmpOp.SLT, INT_MIN, 0, True, False),
    (JmpOp.LE, 6, 5, False, False), (JmpOp.SLE, U32, 0, False, True),
    (JmpOp.SET, 1 << 32 | 2, 1 << 32, True, False)])
def test_jump_if(op: JmpOp, a: int, b: int, wide: bool, narrow: bool) -> None:
    for is64, taken in ((True, wide), (False, narrow)):
        assert r0_of(LoadImm64(1, a), LoadImm64(2, b), Mov(True, 0, Imm(1)),
                     JumpIf(op, is64, 1, Reg(2), 1), Mov(True, 0, Imm(0))) == taken


def test_jumps() -> None:
    assert r0_of(Mov(True, 0, Imm(1)), Jump(1), Mov(True, 0, Imm(2))) == 1
    assert r0_of(Mov(True, 0, Imm(1)), Jump(1, long=True), Mov(True, 0, Imm(2))) == 1
    assert r0_of(Mov(True, 0, Imm(1)), Jump(1), Jump(2), Jump(-2), Mov(True, 0, Imm(2))) == 1


def test_may_goto_ends_a_loop() -> None:
    rounds = r0_of(Mov(True, 0, Imm(0)), MayGoto(2), Alu(AluOp.ADD, True, 0, Imm(1)), Jump(-3))
    assert rounds == 0xFFFF


# --- memory --------------------------------------------------------------------------------------
def test_loads_and_stores() -> None:
    store: list[Insn] = [LoadImm64(1, 0x8182838485868788), Store(10, -8, 8, Reg(1))]
    for size, expected in ((1, 0x88), (2, 0x8788), (4, 0x85868788), (8, 0x8182838485868788)):
        assert r0_of(*store, Load(0, 10, -8, size)) == expected
        assert r0_of(*store, LoadAcquire(0, 10, -8, size)) == expected
        if size < 8:
            signed = expected - (1 << 8 * size) & U64
            assert r0_of(*store, Load(0, 10, -8, size, signed=True)) == signed
        assert r0_of(*store, Store(10, -8, size, Imm(-2)), Load(0, 10, -8, 8)) == (
            0x8182838485868788 >> 8 * size << 8 * size | (1 << 8 * size) - 2)
        assert r0_of(*store, Mov(True, 2, Imm(0)), StoreRelease(10, -8, size, 2),
                     Load(0, 10, -8, 8)) == 0x8182838485868788 >> 8 * size << 8 * size


def test_unwritten_stack_is_zero() -> None:
    assert r0_of(Load(0, 10, -512, 8)) == 0


def test_packet() -> None:
    program = [*packet_in(6, 8), Load(7, 6, 6, 2), Store(6, 0, 2, Reg(7)), Mov(True, 0, Imm(2)),
               Exit()]
    result = interpret(program, bytes(range(8)))
    assert (result.verdict, result.data_out) == (2, bytes([6, 7, 2, 3, 4, 5, 6, 7]))
    assert interpret(program, bytes(7)).verdict == 0


def test_context() -> None:
    obj = one_program([Load(0, 1, 12, 4), Load(2, 1, 16, 4), Alu(AluOp.LSH, True, 0, Imm(8)),
                       Alu(AluOp.OR, True, 0, Reg(2)), Load(2, 1, 20, 4),
                       Alu(AluOp.LSH, True, 0, Imm(8)), Alu(AluOp.OR, True, 0, Reg(2)), Exit()])
    result = Machine(obj, obj.programs[0]).run(bytes(64), 3, 5, 7)
    assert result.r0 == 0x030507


def test_packet_length_on_32_bits() -> None:
    """How clang computes data_end - data when it needs no more."""
    assert r0_of(Load(2, 1, 0, 4), Load(0, 1, 4, 4), Alu(AluOp.SUB, False, 0, Reg(2))) == 64
    assert r0_of(Load(2, 1, 0, 4), Load(0, 1, 4, 4), Mov(False, 0, Reg(0)), Mov(False, 2, Reg(2)),
                 Alu(AluOp.SUB, False, 0, Reg(2))) == 64


def test_spilled_pointer() -> None:
    spill: list[Insn] = [*packet_in(6, 8), Store(10, -8, 8, Reg(6))]
    assert r0_of(*spill, Load(7, 10, -8, 8), Load(0, 7, 0, 1), packet=b"\5" * 64) == 5
    for overwrite in (Store(10, -8, 1, Imm(0)), Store(10, -1, 1, Imm(0)),
                      Store(10, -12, 8, Imm(0))):
        assert trap_of(*spill, overwrite, Load(7, 10, -8, 8), Load(0, 7, 0, 1), Exit()) in (
            TrapKind.NOT_POINTER, TrapKind.NULL)
    assert r0_of(*spill, Load(0, 10, -8, 4)) != 0


def test_pointer_stored_elsewhere_is_a_number() -> None:
    insns: list[Insn] = [*packet_in(6, 8), Store(6, 0, 8, Reg(10)), Load(7, 6, 0, 8)]
    assert r0_of(*insns, Mov(True, 0, Reg(7))) != 0
    assert trap_of(*insns, Load(0, 7, 0, 1), Exit()) is TrapKind.NOT_POINTER


@pytest.mark.parametrize(("op", "fetch", "after", "fetched"), [
    (AtomicOp.ADD, False, 12, 5), (AtomicOp.ADD, True, 12, 7), (AtomicOp.OR, True, 7, 7),
    (AtomicOp.AND, True, 5, 7), (AtomicOp.XOR, False, 2, 5), (AtomicOp.XCHG, True, 5, 7)])
@pytest.mark.parametrize("size", [4, 8])
def test_atomics(op: AtomicOp, fetch: bool, after: int, fetched: int, size: int) -> None:
    insns: list[Insn] = [
        Store(10, -8, 8, Imm(7)), Mov(True, 1, Imm(5)), Atomic(op, size, 10, -8, 1, fetch)]
    assert r0_of(*insns, Load(0, 10, -8, 8)) == after
    assert r0_of(*insns, Mov(True, 0, Reg(1))) == fetched


def test_narrow_atomics() -> None:
    """The upper half of memory stays; what is fetched is zero-extended."""
    insns: list[Insn] = [
        LoadImm64(2, 1 << 40 | U32), Store(10, -8, 8, Reg(2)), LoadImm64(1, 1 << 50 | 1),
        Atomic(AtomicOp.ADD, 4, 10, -8, 1, True)]
    assert r0_of(*insns, Load(0, 10, -8, 8)) == 1 << 40
    assert r0_of(*insns, Mov(True, 0, Reg(1))) == U32


@pytest.mark.parametrize(("r0", "after"), [(7, 5), (8, 7), (1 << 32 | 7, 5)])
def test_compare_and_exchange(r0: int, after: int) -> None:
    insns: list[Insn] = [Store(10, -8, 8, Imm(7)), Mov(True, 1, Imm(5)), LoadImm64(0, r0),
             Atomic(AtomicOp.CMPXCHG, 4, 10, -8, 1, True)]
    assert r0_of(*insns) == 7
    assert r0_of(*insns, Load(0, 10, -8, 8)) == after


# --- maps and calls ------------------------------------------------------------------------------
LOOKUP = (Store(10, -4, 4, Imm(1)), LoadMap(1, 0), Mov(True, 2, Reg(10)),
          Alu(AluOp.ADD, True, 2, Imm(-4)), Call(1))


def test_map_value_is_memory() -> None:
    obj = one_program([*LOOKUP, JumpIf(JmpOp.EQ, True, 0, Imm(0), 2), Mov(True, 1, Imm(3)),
                       Atomic(AtomicOp.ADD, 8, 0, 0, 1, False), Mov(True, 0, Imm(2)), Exit()],
                      (ARRAY,))
    machine = Machine(obj, obj.programs[0])
    for _ in range(5):
        machine.run(bytes(64))
    assert dict(machine.maps[0].items())[struct.pack("=I", 1)] == struct.pack("=Q", 15)


def test_miss_is_null() -> None:
    assert r0_of(*LOOKUP, maps=(HASH,)) == 0
    assert trap_of(*LOOKUP, Load(0, 0, 0, 1), Exit(), maps=(HASH,)) is TrapKind.NULL


def test_globals() -> None:
    data = MapSpec(".data", MapType.ARRAY, 4, 8, 1, global_kind=GlobalKind.DATA,
                   initial=bytes([1, 2, 3]))
    constant = MapSpec(".rodata", MapType.ARRAY, 4, 8, 1, global_kind=GlobalKind.RODATA,
                       initial=b"\7")
    assert r0_of(LoadMapValue(1, 0, 2), Load(0, 1, 0, 1), maps=(data,)) == 3
    assert r0_of(LoadMapValue(1, 0, 2), Store(1, 0, 1, Imm(9)), Load(0, 1, 0, 1),
                 maps=(data,)) == 9
    assert r0_of(LoadMapValue(1, 0, 0), Load(0, 1, 0, 1), maps=(constant,)) == 7
    assert trap_of(LoadMapValue(1, 0, 0), Store(1, 0, 1, Imm(9)), Exit(),
                   maps=(constant,)) is TrapKind.READ_ONLY


def test_local_call() -> None:
    """r6 and the stack are the caller's own; r1 to r5 are gone afterwards."""
    main: list[Insn] = [
        Mov(True, 6, Imm(40)), Store(10, -8, 8, Imm(1)), Mov(True, 1, Imm(2)), CallLocal(4),
        Load(1, 10, -8, 8), Alu(AluOp.ADD, True, 0, Reg(1)), Alu(AluOp.ADD, True, 0, Reg(6)),
        Exit()]
    callee: list[Insn] = [
        Mov(True, 6, Imm(7)), Store(10, -8, 8, Imm(100)), Mov(True, 0, Reg(1)), Exit()]
    assert interpret([*main, *callee]).r0 == 2 + 1 + 40
    assert trap_of(CallLocal(2), Mov(True, 0, Reg(1)), Exit(), Mov(True, 0, Imm(0)),
                   Exit()) is TrapKind.UNINIT
    assert trap_of(CallLocal(1), Exit(), Mov(True, 0, Reg(6)), Exit()) is TrapKind.UNINIT


def test_pointer_to_the_callers_stack() -> None:
    main: list[Insn] = [
        Store(10, -8, 8, Imm(5)), Mov(True, 1, Reg(10)), CallLocal(2), Load(0, 10, -8, 8), Exit()]
    callee: list[Insn] = [
        Alu(AluOp.ADD, True, 1, Imm(-8)), Store(1, 0, 8, Imm(6)), Mov(True, 0, Imm(0)), Exit()]
    assert interpret([*main, *callee]).r0 == 6


def test_calls_too_deep() -> None:
    assert trap_of(CallLocal(-1), Exit()) is TrapKind.CALL_DEPTH


def test_call_through_a_register() -> None:
    """Only the conformance suite knows it: a helper by number, or a function of the program."""
    assert r0_of(Mov(True, 3, Imm(8)), CallReg(3)) == 0
    insns = (LoadFunc(3, 4), None, CallReg(3), Alu(AluOp.ADD, True, 0, Imm(1)), Exit(),
             Mov(True, 0, Imm(6)), Exit())
    program = ProgramSpec("test", "xdp", "xdp", insns)
    assert Machine(Object("test", (program,), ()), program).run(bytes(64)).r0 == 7
    assert trap_of(CallReg(10), Exit()) is TrapKind.POINTER


def machine_with_tail_calls(*programs: list[Insn]) -> Machine:
    """Program number n is in slot n of the program array, except number 0, which is run."""
    specs = tuple(ProgramSpec(f"p{n}", "xdp", "xdp", slots(insns))
                  for n, insns in enumerate(programs))
    array = MapSpec("programs", MapType.PROG_ARRAY, 4, 4, 4,
                    slots=tuple((n, f"p{n}") for n in range(1, len(programs))))
    obj = Object("test", specs, (array,))
    return Machine(obj, obj.programs[0])


def tail_call(index: int) -> list[Insn]:
    return [Mov(True, 6, Reg(1)), LoadMap(2, 0), Mov(True, 3, Imm(index)), Call(12)]


def test_tail_call() -> None:
    target: list[Insn] = [Load(0, 1, 12, 4), Exit()]
    machine = machine_with_tail_calls([*tail_call(1), Mov(True, 0, Imm(9)), Exit()], target)
    assert machine.run(bytes(64), ingress_ifindex=4).r0 == 4
    for miss in (2, 3, 4, 1000, -1):
        machine = machine_with_tail_calls([*tail_call(miss), Mov(True, 0, Imm(9)), Exit()], target)
        assert machine.run(bytes(64)).r0 == 9


def test_tail_call_keeps_no_registers() -> None:
    for register in (0, 2, 6, 9):
        machine = machine_with_tail_calls([*tail_call(1), Mov(True, 0, Imm(9)), Exit()],
                                          [Mov(True, 0, Reg(register)), Exit()])
        with pytest.raises(Trap, match="uninitialised"):
            machine.run(bytes(64))


def test_tail_calls_are_limited() -> None:
    """Program 1 calls itself, counting in the packet's first byte."""
    again: list[Insn] = [Mov(True, 6, Reg(1)), *packet_in(7, 1), Load(8, 7, 0, 1),
             Alu(AluOp.ADD, True, 8, Imm(1)), Store(7, 0, 1, Reg(8)), Mov(True, 1, Reg(6)),
             LoadMap(2, 0), Mov(True, 3, Imm(1)), Call(12), Mov(True, 0, Imm(2)), Exit()]
    result = machine_with_tail_calls(again, again).run(bytes(64))
    assert (result.r0, result.data_out[0]) == (2, 34)  # the first, and 33 tail calls


def test_tail_call_from_a_function_returns_to_its_caller() -> None:
    main: list[Insn] = [
        CallLocal(2), Alu(AluOp.ADD, True, 0, Imm(1)), Exit(), *tail_call(1), Exit()]
    assert machine_with_tail_calls(main, [Mov(True, 0, Imm(5)), Exit()]).run(bytes(64)).r0 == 6


# --- traps ---------------------------------------------------------------------------------------
DATA = Load(6, 1, 0, 4)
ADJUST = (Mov(True, 9, Reg(1)), Mov(True, 2, Imm(0)), Call(44))


def test_a_trap_names_the_instruction() -> None:
    with pytest.raises(Trap, match=r"^instruction 2: null pointer: r1 is null$"):
        interpret([LoadImm64(1, 0), Load(0, 1, 0, 1)])
    with pytest.raises(Trap, match=r"^instruction 1: runs off the program: test has 2 slots$"):
        interpret([Mov(True, 0, Imm(0)), Jump(5)])


@pytest.mark.parametrize(("insns", "kind"), [
    ([Mov(True, 0, Reg(5))], TrapKind.UNINIT),
    ([Exit()], TrapKind.UNINIT),
    ([Call(8), Mov(True, 0, Reg(1))], TrapKind.UNINIT),
    ([Load(0, 10, 0, 1)], TrapKind.BOUNDS),
    ([Load(0, 10, -4, 8)], TrapKind.BOUNDS),
    ([Store(10, -513, 1, Imm(0))], TrapKind.BOUNDS),
    ([DATA, Load(0, 6, 57, 8)], TrapKind.BOUNDS),
    ([DATA, Load(0, 6, -1, 1)], TrapKind.BOUNDS),
    ([LoadMap(1, 0), Load(0, 1, 0, 4)], TrapKind.BOUNDS),
    ([*LOOKUP, Load(0, 0, 1, 8)], TrapKind.BOUNDS),
    ([Mov(True, 2, Imm(0)), Load(0, 2, 8, 8)], TrapKind.NULL),
    ([Mov(True, 2, Imm(4096)), Load(0, 2, 0, 8)], TrapKind.NOT_POINTER),
    ([DATA, Alu(AluOp.MUL, True, 6, Imm(2))], TrapKind.POINTER),
    ([DATA, Alu(AluOp.ADD, True, 6, Reg(1))], TrapKind.POINTER),
    ([DATA, Alu(AluOp.ADD, False, 6, Imm(1))], TrapKind.POINTER),
    ([DATA, Mov(True, 2, Imm(1)), Alu(AluOp.SUB, True, 2, Reg(6))], TrapKind.POINTER),
    ([DATA, Neg(True, 6)], TrapKind.POINTER),
    ([DATA, Swap(6, 16, SwapOrder.BE)], TrapKind.POINTER),
    ([DATA, Mov(True, 0, Reg(6)), Exit()], TrapKind.LEAK),
    ([*ADJUST[:1], DATA, *ADJUST[1:], Load(0, 6, 0, 1)], TrapKind.STALE),
    ([*ADJUST[:1], DATA, Store(10, -8, 8, Reg(6)), *ADJUST[1:], Load(6, 10, -8, 8),
      Load(0, 6, 0, 1)], TrapKind.STALE),
    ([Load(0, 1, 0, 8)], TrapKind.CTX),
    ([Load(0, 1, 2, 2)], TrapKind.CTX),
    ([Load(0, 1, 24, 4)], TrapKind.CTX),
    ([Store(1, 16, 4, Imm(0))], TrapKind.CTX),
    ([Call(9)], TrapKind.HELPER),
    ([Call(5000)], TrapKind.HELPER),
    ([Mov(True, 1, Reg(10)), Mov(True, 2, Imm(0)), Call(44)], TrapKind.ARGUMENT),
    ([Mov(True, 1, Imm(0)), Mov(True, 2, Reg(10)), Call(1)], TrapKind.ARGUMENT),
    ([LoadMap(1, 0), Mov(True, 2, Reg(10)), Call(1)], TrapKind.BOUNDS),
    ([LoadMap(2, 0), Mov(True, 3, Imm(0)), Call(12)], TrapKind.ARGUMENT),
    ([Mov(True, 1, Reg(10)), Mov(True, 2, Imm(0)), Call(6)], TrapKind.ARGUMENT),
    ([Mov(True, 1, Reg(10)), Mov(True, 2, Reg(10)), Call(6)], TrapKind.ARGUMENT),
    ([Mov(True, 2, Reg(1)), Mov(True, 1, Reg(2)), Mov(True, 2, Imm(4)), Call(6)], TrapKind.CTX),
    ([CallKfunc(5, 0)], TrapKind.UNSUPPORTED),
    ([Mov(True, 0, Imm(0))], TrapKind.FALLTHROUGH),
    ([Jump(-3)], TrapKind.FALLTHROUGH),
    ([Jump(1), LoadImm64(0, 1)], TrapKind.FALLTHROUGH),
    ([Jump(-1)], TrapKind.BUDGET),
])
def test_traps(insns: list[Insn], kind: TrapKind) -> None:
    assert trap_of(*insns, maps=(ARRAY,)) is kind


# --- the kernel ----------------------------------------------------------------------------------
class TestKernel:
    """Results are 64 bits: they are stored into the packet."""

    pytestmark = needs_bpf()

    @pytest.mark.parametrize("op", AluOp)
    def test_alu_at_the_edges(self, op: AluOp) -> None:
        pairs = [(a, b) for a in EDGES for b in EDGES]
        body: list[Insn] = []
        for a, b in pairs:
            for is64 in (True, False):
                body += [LoadImm64(3, a), LoadImm64(4, b), Alu(op, is64, 3, Reg(4)), *_mix(3)]
        agree(_hashing(body))

    @pytest.mark.parametrize("op", JmpOp)
    def test_jumps_at_the_edges(self, op: JmpOp) -> None:
        body: list[Insn] = []
        for a in EDGES:
            for b in EDGES:
                for is64 in (True, False):
                    body += [LoadImm64(3, a), LoadImm64(4, b), Mov(True, 5, Imm(1)),
                             JumpIf(op, is64, 3, Reg(4), 1), Mov(True, 5, Imm(0)), *_mix(5)]
        agree(_hashing(body))

    @pytest.mark.parametrize("block", range(8))
    def test_random_arithmetic(self, block: int) -> None:
        """Straight-line programs over r3 to r5, r8 and r9; the packet holds all results."""
        rng = random.Random(block)
        for _ in range(60):
            live = (3, 4, 5, 8, 9)
            body: list[Insn] = [LoadImm64(r, rng.choice((*EDGES, rng.getrandbits(64))))
                                for r in live]
            body += [_random_insn(rng, live) for _ in range(40)]
            body += [Store(6, 8 + 8 * n, 8, Reg(r)) for n, r in enumerate(live)]
            agree(_hashing(body))

    @pytest.mark.parametrize("block", range(4))
    def test_random_memory(self, block: int) -> None:
        rng = random.Random(f"memory {block}")
        for _ in range(60):
            body: list[Insn] = [LoadImm64(r, rng.getrandbits(64)) for r in (0, 3, 4)]
            body += [Store(10, at, 8, Reg(3)) for at in range(-64, 0, 8)]
            for _ in range(25):
                body += _random_access(rng)
            body += [insn for at in range(-64, 0, 8) for insn in (Load(5, 10, at, 8), *_mix(5))]
            agree(_hashing(body))

    def test_loops_and_calls(self) -> None:
        """Sums 1..n in a function, on the caller's stack."""
        main: list[Insn] = [
            Store(10, -8, 8, Imm(0)), Mov(True, 1, Reg(10)), Alu(AluOp.ADD, True, 1, Imm(-8)),
            Mov(True, 2, Imm(100)), CallLocal(2), Load(0, 10, -8, 8), Exit()]
        callee: list[Insn] = [
            Load(3, 1, 0, 8), Alu(AluOp.ADD, True, 3, Reg(2)), Store(1, 0, 8, Reg(3)),
            Alu(AluOp.SUB, True, 2, Imm(1)), JumpIf(JmpOp.NE, True, 2, Imm(0), -5),
            Mov(True, 0, Imm(0)), Exit()]
        assert agree([*main, *callee]).r0 == 5050


def _hashing(body: list[Insn]) -> list[Insn]:
    """The packet in r6; a running hash of what `_mix` was given goes to its first 8 bytes."""
    return [*packet_in(6, 64), LoadImm64(7, 0x9E3779B97F4A7C15), *body, Store(6, 0, 8, Reg(7)),
            Mov(True, 0, Imm(2)), Exit()]


def _mix(register: int) -> list[Insn]:
    return [Alu(AluOp.XOR, True, 7, Reg(register)), Alu(AluOp.MUL, True, 7, Imm(0x01000193)),
            Alu(AluOp.ADD, True, 7, Imm(0x35))]


def _random_insn(rng: random.Random, live: tuple[int, ...]) -> Insn:
    dst, src, is64 = rng.choice(live), rng.choice(live), rng.random() < 0.5
    match rng.randrange(8):
        case 0:
            return Neg(is64, dst)
        case 1:
            return Mov(is64, dst, Reg(src), rng.choice((0, 8, 16, 32) if is64 else (0, 8, 16)))
        case 2:
            return Swap(dst, rng.choice((16, 32, 64)), rng.choice(list(SwapOrder)))
        case 3:
            return Mov(is64, dst, Imm(rng.randrange(-(1 << 31), 1 << 31)))
        case kind:
            op = rng.choice(list(AluOp))
            if kind < 6:
                return Alu(op, is64, dst, Reg(src))
            constant = rng.choice((1, 2, 7, 31, -1, -7, rng.randrange(-(1 << 31), 1 << 31) or 1))
            if op in (AluOp.LSH, AluOp.RSH, AluOp.ARSH):
                constant &= 63 if is64 else 31
            return Alu(op, is64, dst, Imm(constant))


def _random_access(rng: random.Random) -> list[Insn]:
    """Of r0, r3, r4 and 64 bytes of stack, aligned."""
    size = rng.choice((1, 2, 4, 8))
    at = -size * rng.randrange(1, 64 // size + 1)
    wide = rng.choice((4, 8))
    at_wide = -wide * rng.randrange(1, 64 // wide + 1)
    match rng.randrange(5):
        case 0:
            return [Load(3, 10, at, size), *_mix(3)]
        case 1 if size < 8:
            return [Load(4, 10, at, size, signed=True), *_mix(4)]
        case 2:
            return [Store(10, at, size, Imm(rng.randrange(-(1 << 31), 1 << 31)))]
        case 3:
            return [Store(10, at, size, Reg(rng.choice((3, 4))))]
        case _:
            op = rng.choice(list(AtomicOp))
            fetch = op in (AtomicOp.XCHG, AtomicOp.CMPXCHG) or rng.random() < 0.5
            return [Atomic(op, wide, 10, at_wide, rng.choice((3, 4)), fetch), *_mix(3), *_mix(0)]
