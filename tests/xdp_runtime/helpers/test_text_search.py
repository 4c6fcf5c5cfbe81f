"""bpf_strlen and its like: interpreted = compiled = the kernel, on random text."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import one_program, packet_in
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.interp import Machine
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    JmpOp,
    JumpIf,
    Load,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType
from xdp_runtime.program import load

OBJECT = read_object(Path(__file__).with_name("text.o"))
COMMAND, ROOM, FUNCTIONS = struct.Struct("<IIIi32s32s"), 32, 18
ENOENT, EFAULT = -2, -14


def text(rng: random.Random, ended: bool = True) -> bytes:
    """Of few letters, so that something is found; upper case, signs and Latin-1 too."""
    letters = rng.choice((b"ab", b"aAbB", b"ne\xe9\xc9\xd7\xf7", b"needle"))
    size = rng.randrange(ROOM - 1)
    made = bytes(rng.choice(letters) for _ in range(size))
    if not ended:
        return (made + b"xy" * ROOM)[:ROOM]
    return (made + b"\0" + rng.choice((b"", b"a", b"needle"))).ljust(ROOM, b"\0")[:ROOM - 1] + b"\0"


def packets(seed: int, count: int, ended: bool = True) -> list[bytes]:
    rng, out = random.Random(seed), []
    for number in range(count):
        one = text(rng, ended or rng.random() < 0.5)
        other = rng.choice((text(rng, ended or rng.random() < 0.5), one,
                            one[: rng.randrange(3)].ljust(ROOM, b"\0"),
                            one[rng.randrange(5):].ljust(ROOM, b"\0"),
                            one.swapcase(), b"needle".ljust(ROOM, b"\0")))
        if rng.random() < 0.1:
            one = b"needle".ljust(ROOM, b"\0")
        out.append(COMMAND.pack(
            number % FUNCTIONS, rng.choice((0, 1, 5, 31, 0xFFFFFFFF, rng.randrange(40)
                                            if ended else 40)),
            rng.choice((0, 0x161, ord("b"), rng.choice(one), rng.getrandbits(32))), 0, one, other))
    return out


def results(given: list[bytes]) -> list[bytes]:
    machine = Machine(OBJECT, OBJECT.programs[0])
    return [machine.run(packet).data_out for packet in given]


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("ended", [True, False])
def test_compiled_is_interpreted(opt: int, ended: bool) -> None:
    given = packets(1, 4000, ended)
    with load(OBJECT, opt=opt) as program:
        for packet, expected in zip(given, results(given), strict=True):
            assert program.run(packet).data_out == expected, COMMAND.unpack(packet)


STRRCHR = 5


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    """A char of 128 and more is passed with its sign, which strrchr of this kernel's compiler does
    not cut off again, and the other functions do."""
    given = [packet for packet in packets(2, 4500)
             if packet[0] != STRRCHR or packet[8] < 0x80]
    with load_into_kernel(OBJECT) as program:
        for packet, expected in zip(given, results(given), strict=True):
            found = program.run(packet).data_out
            assert found == expected, (COMMAND.unpack(packet), COMMAND.unpack(found)[3],
                                       COMMAND.unpack(expected)[3])


def test_everything_is_met() -> None:
    seen: dict[int, set[int]] = {}
    for data in results(packets(1, 4000) + packets(1, 2000, ended=False)):
        number, _, _, result, *_ = COMMAND.unpack(data)
        seen.setdefault(number, set()).add(result)
    assert len(seen) == FUNCTIONS
    assert all({-1, 0, 1} <= seen[number] for number in (0, 1))
    assert all(ENOENT in seen[number] for number in (2, 4, 5, 10, 11, 13))
    assert all(EFAULT in seen[number] for number in (0, 2, 3, 6, 8, 9, 10))
    assert all(len(seen[number]) > 5 for number in range(2, 12))


def test_text_in_two_places_is_refused() -> None:
    """In the packet on one path, on the stack on the other: nobody could say where it ends."""
    insns = [*packet_in(6, 16), Store(10, -8, 8, Imm(0)), Mov(True, 1, Reg(6)),
             Load(2, 6, 0, 1), JumpIf(JmpOp.EQ, True, 2, Imm(0), 2), Mov(True, 1, Reg(10)),
             Alu(AluOp.ADD, True, 1, Imm(-8)), Call(KERNEL_FUNCTIONS["bpf_strlen"]), Exit()]
    with pytest.raises(LoadError, match="text that is elsewhere by path"):
        load(one_program(insns))


def test_constant_text_may_be_anywhere() -> None:
    """It ends by itself, so the other one's end serves both."""
    words = MapSpec("words", MapType.ARRAY, 4, 8, 1, int(MapFlag.RDONLY_PROG), initial=b"abc\0",
                    global_kind=GlobalKind.RODATA)
    value = MapSpec("value", MapType.ARRAY, 4, 64, 1)
    insns = [*packet_in(6, 16), Load(7, 6, 0, 1), Store(10, -4, 4, Imm(0)), LoadMap(1, 1),
             Mov(True, 2, Reg(10)), Alu(AluOp.ADD, True, 2, Imm(-4)), Call(1),
             JumpIf(JmpOp.EQ, True, 0, Imm(0), 10), LoadImm64(1, 0x7878787878787878),
             Store(0, 0, 8, Reg(1)), Store(0, 8, 8, Reg(1)), Mov(True, 1, Reg(0)),
             JumpIf(JmpOp.EQ, True, 7, Imm(0), 2), LoadMapValue(1, 0, 0),
             Call(KERNEL_FUNCTIONS["bpf_strlen"]), Store(6, 0, 8, Reg(0)), Mov(True, 0, Imm(2)),
             Exit()]
    obj = one_program(insns, (words, value))
    machine = Machine(obj, obj.programs[0])
    with load(obj) as program:
        for first, length in ((0, 16), (1, 3)):
            packet = bytes([first]) + bytes(63)
            found = program.run(packet).data_out
            assert found == machine.run(packet).data_out
            assert found[:8] == struct.pack("<Q", length)
