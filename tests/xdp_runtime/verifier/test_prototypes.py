"""Prototypes of helpers against the kernel's: each argument of each helper, given everything.

A call of every helper that XDP programs may make is built with arguments it takes; then each
argument in turn is a number, the context, memory of every kind, a map.  The kernel and we say yes
and no to the same.  (Arguments that take more to make, such as records, are in the corpus.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest

from tests.privileges import bpf_refusal
from tests.xdp_runtime.verifier.kernel_load import load, make_map
from xdp_runtime.helper_names import HELPER_NAMES
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    Insns,
    JmpOp,
    JumpIf,
    Load,
    LoadMap,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.verifier import verify

pytestmark = [pytest.mark.root,
              pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel: {bpf_refusal()}")]

MEMORY = (Arg.MEM, Arg.MEM_OR_NULL, Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL, Arg.FIXED,
          Arg.FIXED_UNINIT, Arg.MAP_KEY, Arg.MAP_VALUE, Arg.MAP_VALUE_UNINIT, Arg.STACK_OR_NULL)
SIZES = (Arg.SIZE, Arg.SIZE_OR_ZERO, Arg.CONST_SIZE)
# key, value, entries
MAPS = {MapType.HASH: (8, 64, 4), MapType.ARRAY: (4, 64, 4), MapType.PERCPU_HASH: (8, 64, 4),
        MapType.PERCPU_ARRAY: (4, 64, 4), MapType.LRU_HASH: (8, 64, 4),
        MapType.LPM_TRIE: (8, 64, 4), MapType.QUEUE: (0, 64, 4), MapType.STACK: (0, 64, 4),
        MapType.BLOOM_FILTER: (0, 64, 4), MapType.RINGBUF: (0, 0, 4096),
        MapType.PERF_EVENT_ARRAY: (4, 4, 2), MapType.DEVMAP: (4, 4, 2),
        MapType.DEVMAP_HASH: (4, 4, 2), MapType.CPUMAP: (4, 4, 2), MapType.XSKMAP: (4, 4, 2),
        MapType.PROG_ARRAY: (4, 4, 2), MapType.STACK_TRACE: (4, 80, 2),
        MapType.CGROUP_ARRAY: (4, 4, 2)}
VALUES = MapSpec("values", MapType.HASH, 8, 64, 4)
VALUE_MAP, CALLED_MAP = 0, 1
# what an argument is tried with; r6 context, r7 64 bytes of packet, r8 a map value, r9 one or null
GIVEN = ("uninit", "zero", "one", "many", "unknown", "bounded", "context", "stack", "stack top",
         "packet", "packet start", "value", "value end", "nullable", "map")


def give(number: int, what: str) -> list[Insn | None]:
    match what:
        case "uninit":
            return []
        case "zero" | "one" | "many":
            return [Mov(True, number, Imm({"zero": 0, "one": 1, "many": 1 << 20}[what]))]
        case "unknown":
            return [Load(number, 8, 0, 8)]
        case "bounded":
            return [Load(number, 8, 0, 8), Alu(AluOp.AND, True, number, Imm(15))]
        case "context":
            return [Mov(True, number, Reg(6))]
        case "stack" | "stack top":
            off = -64 if what == "stack" else -2
            return [Mov(True, number, Reg(10)), Alu(AluOp.ADD, True, number, Imm(off))]
        case "packet" | "packet start":
            source = Mov(True, number, Reg(7))
            return [source, Alu(AluOp.ADD, True, number, Imm(62 if what == "packet" else 0))]
        case "value" | "value end":
            return [Mov(True, number, Reg(8)),
                    Alu(AluOp.ADD, True, number, Imm(0 if what == "value" else 62))]
        case "nullable":
            return [Mov(True, number, Reg(9))]
        case "map":
            return [LoadMap(number, CALLED_MAP), None]
        case _:
            raise AssertionError(what)


def usual(arg: Arg) -> str:
    if arg in MEMORY:
        return "stack"
    if arg in SIZES:
        return "bounded" if arg is Arg.SIZE_OR_ZERO else "one"
    return {Arg.CTX: "context", Arg.MAP: "map"}.get(arg, "zero")


def program(helper: Helper, arguments: list[str]) -> Insns:
    """The call; whatever fails before it leads to the end."""
    begin: list[Insn | None] = [
        Mov(True, 6, Reg(1)), Load(7, 6, 0, 4), Load(8, 6, 4, 4), Mov(True, 2, Reg(7)),
        Alu(AluOp.ADD, True, 2, Imm(64)), JumpIf(JmpOp.GT, True, 2, Reg(8), 0),
        Store(10, -64, 8, Imm(0))]
    for keep in (8, 9):
        begin += [LoadMap(1, VALUE_MAP), None, Mov(True, 2, Reg(10)),
                  Alu(AluOp.ADD, True, 2, Imm(-64)), Call(1), Mov(True, keep, Reg(0))]
        if keep == 8:
            begin.append(JumpIf(JmpOp.EQ, True, 8, Imm(0), 0))
    for number, what in enumerate(arguments, 1):
        begin += give(number, what)
    begin.append(Call(helper.id))
    out = len(begin)
    end: list[Insn | None] = [Mov(True, 0, Imm(2)), Exit()]
    return tuple(
        JumpIf(insn.op, insn.is64, insn.dst, insn.src, out - slot - 1)
        if isinstance(insn, JumpIf) else insn for slot, insn in enumerate(begin)) + tuple(end)


def variants(helper: Helper) -> Iterator[list[str]]:
    base = [usual(arg) for arg in helper.args]
    yield base
    for position in range(len(helper.args)):
        for what in GIVEN:
            yield [*base[:position], what, *base[position + 1:]]
        if position and helper.args[position] in SIZES:  # memory and its size together
            for what in ("zero", "stack top", "value end", "nullable", "packet"):
                for size in ("zero", "one", "many", "bounded"):
                    yield [*base[:position - 1], what, size, *base[position + 1:]]


@cache
def descriptor(spec: MapSpec) -> int:
    return make_map(spec)


def called_map(kind: MapType) -> MapSpec:
    flags = MapFlag.NO_PREALLOC if kind is MapType.LPM_TRIE else 0
    return MapSpec("called", kind, *MAPS[kind], flags)


def types_of(helper: Helper) -> list[MapType]:
    if Arg.MAP not in helper.args:
        return [MapType.HASH]
    return list(MAPS)


XDP = [helper for helper in HELPERS.values() if helper.xdp and helper.id < 0x10000]  # no kfuncs


@pytest.mark.parametrize("helper", XDP, ids=lambda helper: helper.name)
def test_arguments(helper: Helper) -> None:
    wrong = []
    for number, kind in enumerate(types_of(helper)):
        called = called_map(kind)
        maps = (VALUES, called)
        fits = helper.maps is None or kind in helper.maps
        first = fits and (number == 0 or called.type == min(helper.maps or {kind}))
        for arguments in variants(helper) if first else [[usual(a) for a in helper.args]]:
            insns = program(helper, arguments)
            answer = load(insns, [descriptor(spec) for spec in maps])
            obj = Object("call", (ProgramSpec("call", "xdp", "xdp", insns),), maps, "GPL")
            report = verify(obj, obj.programs[0])
            # there are no objects of the kernel's here, and no null of a size that is not 0
            strict = helper.ret is Ret.OBJECT or (
                answer.accepted and any(error.kind == "null" for error in report.errors))
            if report.ok != answer.accepted and not strict:
                wrong.append((kind.name, arguments, answer.line,
                              [error.text for error in report.errors]))
    assert not wrong, "\n".join(map(str, wrong[:10]))


def test_which_helpers_there_are() -> None:
    """Allowed for XDP, and only under the GPL: as the kernel has it."""
    wrong = []
    for number in range(1, len(HELPER_NAMES)):
        insns = (Call(number), Mov(True, 0, Imm(2)), Exit())
        words = [load(insns, [], license=license).line for license in ("GPL", "MIT")]
        refusals = ("unknown func", "cannot use", "might sleep")
        allowed = not any(word in words[0] for word in refusals)
        helper = HELPERS.get(number)
        ours = helper is not None and helper.xdp
        gpl = "GPL" in words[1]
        if allowed != ours or (helper is not None and allowed and helper.gpl_only != gpl):
            wrong.append((number, HELPER_NAMES[number], words, helper))
    assert not wrong


def test_descriptors_are_released() -> None:
    for spec in (VALUES, *(called_map(kind) for kind in MAPS)):
        os.close(descriptor(spec))
    descriptor.cache_clear()
