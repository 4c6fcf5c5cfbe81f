"""bpf_snprintf and bpf_trace_vprintk: text and result, interpreted = compiled = in the kernel."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import one_program
from xdp_runtime.errors import VerifyError
from xdp_runtime.helpers import by_name
from xdp_runtime.helpers.printf import EINVAL, ENOSPC
from xdp_runtime.helpers.trace import TEXT_BYTES, read_trace
from xdp_runtime.interp import Machine
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    LoadImm64,
    LoadMapValue,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType, Object
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

SNPRINTF, VPRINTK = by_name["snprintf"].id, by_name["trace_vprintk"].id
U64 = (1 << 64) - 1
OUT_BYTES = 1400
Argument = int | bytes  # a number, or a text: of up to 40 bytes on the stack, else a constant
Outcome = tuple[int, bytes]

ADDRESS = bytes([192, 168, 7, 1, *range(12)])
CASES: list[tuple[bytes, Sequence[Argument]]] = [
    (b"%s|%10s|%-10s|%05s", [b"alpha"] * 4),
    (b"%pks|%9pks|%pus", [b"kernel", b"no width", b"user"]),
    (b"%s|%s|%s|%pks|%pus", [0, 1, U64, 0xDEAD, 0]),
    (b"%pI4 %pi4 %pI6 %pi6 %20pI4", [ADDRESS] * 5),
    (b"%pI4 %pi4 %pI6 %pi6", [0, 1, U64, 0x1234]),
    (b"%pI4h.%pI6c.%pI4abc def", [ADDRESS] * 3),
    (b"%pS|%ps|%20pS|%-20ps|%pSR|%pSb|%25pB|%pB", [0x1234] * 8),
    (b"%pS %ps %pB", [0, U64, 1 << 40]),
    (b"%px|%20px|%-20px|%5px|%05px|%020px|", [0xABCDEF] * 6),
    (b"%pxyz123 %pxx", [1, 2]),
    (b"%px\xe9\xa9.", [1]),
    (b"%p|%pK|%p.", [0, 0, U64]),
    (b"%d%c%d%c%lld%s%d", [1, 65, 2, 66, 3, b"odd", 4]),
    (b"%c%s%c%s%u", [1, b"", 2, b"x", 7]),
    (b"%s" * 12, [b"ab"] * 12),
    (b"%s", [b"long " * 120]),
    (b"%s%d", [b"long " * 120, 5]),
    (b"%s%s", [b"x" * 300, b"y" * 300]),
    (b"%s%s%s", [b"x" * 300, b"y" * 300, b"z"]),
    (b"%s%d%d%d", [b"x" * 500, 1, 2, 3]),
    (b"%s%d%d", [b"x" * 500, 1, 2]),
    (b"%s%lld", [b"x" * 500, 1]),
    (b"%1000d%s", [5, b"tail"]),
    (b"%2147483648px|%4294967295px|%4294967300d|%6442450944s", [1, 2, 3, b"a width is an int"]),
    (b"%pS\x98\x8b|%pI4h\x92\xe9", [1, ADDRESS]),
    (b"plain %% text", []),
    ("µ %s é".encode(), [b"\xff\xfe"]),
]
REFUSED = [(b"%sx", 1), (b"%s", 0), (b"%pI5", 1), (b"%pk", 1), (b"%pu ", 1), (b"%pksx", 1),
           (b"%ls", 1), (b"%pe", 1), (b"%d %d", 1), (b"\x01", 0), (b"%pM", 1), (b"%.3s", 1)]


def build(helper: int, text: bytes, arguments: Sequence[Argument], size: int) -> Object:
    """r0 = what the helper answers; snprintf's text is in the first value of `out`."""
    constants = bytearray(text + b"\0")
    insns: list[Insn] = []
    base = 8 * len(arguments)
    top = base
    for number, argument in enumerate(arguments):
        at = -base + 8 * number
        if isinstance(argument, int):
            insns += [LoadImm64(1, argument), Store(10, at, 8, Reg(1))]
        elif len(argument) > 40 or top + 48 > 500:
            insns += [LoadMapValue(1, 0, len(constants)), Store(10, at, 8, Reg(1))]
            constants += argument + b"\0"
        else:
            padded = (argument + b"\0").ljust(48, b"\0")[: len(argument) + 8 & ~7]
            top += len(padded)
            for word in range(0, len(padded), 8):
                insns += [LoadImm64(1, int.from_bytes(padded[word : word + 8], "little")),
                          Store(10, word - top, 8, Reg(1))]
            insns += [Mov(True, 1, Reg(10)), Alu(AluOp.ADD, True, 1, Imm(-top)),
                      Store(10, at, 8, Reg(1))]
    data: list[Insn] = [Mov(True, 4, Imm(0))]
    if arguments:
        data = [Mov(True, 4, Reg(10)), Alu(AluOp.ADD, True, 4, Imm(-base))]
    if helper == SNPRINTF:
        insns += [LoadMapValue(1, 1, 0) if size else Mov(True, 1, Imm(0)), Mov(True, 2, Imm(size)),
                  LoadMapValue(3, 0, 0), *data, Mov(True, 5, Imm(base))]
    else:
        insns += [*data, Mov(True, 3, Reg(4)), LoadMapValue(1, 0, 0),
                  Mov(True, 2, Imm(len(text) + 1)), Mov(True, 4, Imm(base))]
    insns += [Call(helper), Exit()]
    size_of = len(constants)
    maps = (
        MapSpec("c.rodata", MapType.ARRAY, 4, size_of, 1, int(MapFlag.RDONLY_PROG),
                initial=bytes(constants), global_kind=GlobalKind.RODATA),
        MapSpec("out", MapType.ARRAY, 4, OUT_BYTES, 1, initial=b"\xaa" * OUT_BYTES,
                global_kind=GlobalKind.DATA),
    )
    return one_program(insns, maps)


def interpreted(obj: Object) -> Outcome:
    machine = Machine(obj, obj.programs[0])
    r0 = machine.run(bytes(64)).verdict
    return r0, bytes(machine.maps[1].lookup(bytes(4)) or b"")


def compiled(obj: Object, opt: int = 3) -> Outcome:
    with load(obj, opt=opt) as program:
        retval, value = program.run(bytes(64)).retval, program.raw_maps["out"].lookup(bytes(4))
    assert isinstance(value, bytes)
    return retval, value


def in_kernel(obj: Object) -> Outcome:
    with load_into_kernel(obj) as program:
        return program.run(bytes(64)).retval, program.maps["out"].lookup(bytes(4)) or b""


def test_no_room_for_arguments() -> None:
    results = [interpreted(build(SNPRINTF, text, arguments, 20))[0] for text, arguments in CASES]
    assert results.count(-ENOSPC & 0xFFFFFFFF) >= 3


def printed(obj: Object) -> tuple[tuple[int, tuple[str, ...]], tuple[int, tuple[str, ...]]]:
    """(result, messages) interpreted, and compiled."""
    ours = Machine(obj, obj.programs[0]).run(bytes(64))
    with load(obj) as program:
        r0 = program.run(bytes(64)).retval
        texts, _ = read_trace(program.worker_bytes(0), 0)
    return (ours.verdict, ours.trace), (r0, tuple(texts))


def text_of(outcome: Outcome) -> bytes:
    return outcome[1].split(b"\0")[0]


def test_what_is_expected() -> None:
    shown = [text_of(interpreted(build(SNPRINTF, text, arguments, OUT_BYTES)))
             for text, arguments in CASES[:6]]
    assert shown == [
        b"alpha|     alpha|alpha     |alpha", b"kernel|no width|",
        b"||||", b"192.168.7.1 192.168.007.001 c0a8:0701:0001:0203:0405:0607:0809:0a0b "
        b"c0a80701000102030405060708090a0b 192.168.7.1",
        b"0.0.0.0 000.000.000.000 " + b":".join([b"0000"] * 8) + b" " + b"0" * 32,
        b"192.168.7.1.c0a8:0701:0001:0203:0405:0607:0809:0a0b.192.168.7.1 def"]


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("size", [OUT_BYTES, 20, 1, 0])
def test_compiled_is_interpreted(size: int, opt: int) -> None:
    for text, arguments in CASES:
        obj = build(SNPRINTF, text, arguments, size)
        assert compiled(obj, opt) == interpreted(obj), text


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("size", [OUT_BYTES, 20, 1, 0])
def test_kernel(size: int) -> None:
    for text, arguments in CASES:
        obj = build(SNPRINTF, text, arguments, size)
        assert interpreted(obj) == in_kernel(obj), text


def test_refused_when_it_runs() -> None:
    """bpf_trace_vprintk's format is looked at by the call."""
    for text, count in REFUSED:
        assert printed(build(VPRINTK, text, [1] * count, 0)) == (
            (-EINVAL & 0xFFFFFFFF, ()), (-EINVAL & 0xFFFFFFFF, ())), text


def test_refused_when_it_is_proven() -> None:
    """bpf_snprintf's format is known before it runs."""
    for text, count in REFUSED:
        obj = build(SNPRINTF, text, [1] * count, 20)
        assert [error.kind for error in verify(obj, obj.programs[0]).errors] == ["helper"], text


@pytest.mark.root
@needs_bpf()[1]
def test_kernel_refuses() -> None:
    for text, count in REFUSED:
        assert in_kernel(build(VPRINTK, text, [1] * count, 0))[0] == -EINVAL & 0xFFFFFFFF, text
        with pytest.raises(VerifyError, match="Invalid format string"):
            in_kernel(build(SNPRINTF, text, [1] * count, 20))


def test_printed() -> None:
    for text, arguments in CASES:
        ours, theirs = printed(build(VPRINTK, text, arguments, 0))
        assert ours == theirs, text
        if ours[0] < 1 << 31:
            whole = text_of(interpreted(build(SNPRINTF, text, arguments, OUT_BYTES)))
            assert ours[1] == (whole[:TEXT_BYTES].decode(errors="replace"),), text
            assert ours[0] == len(whole), text


@pytest.mark.root
@needs_bpf()[1]
def test_printed_by_the_kernel() -> None:
    """The result; the text is in test_trace_pipe.py."""
    for text, arguments in CASES:
        obj = build(VPRINTK, text, arguments, 0)
        assert interpreted(obj)[0] == in_kernel(obj)[0], text


def random_cases(seed: int, count: int) -> list[tuple[bytes, list[Argument], int]]:
    rng, out = random.Random(seed), []
    kinds = ("d", "i", "u", "x", "X", "ld", "lu", "lx", "lld", "llX", "c", "s", "s", "pks", "pus",
             "pI4", "pi4", "pI6", "pi6", "px", "pS", "ps", "pB", "pxy", "pSz")
    for _ in range(count):
        chosen = rng.choices(kinds, k=rng.randrange(1, 13))
        text = "".join(f"{rng.choice(('', ' ', 'ab ', '%%', ':'))}%"
                       f"{rng.choice(('', '-', '0', '+'))}"
                       f"{rng.choice(('', '', '3', '12', '40'))}{kind}{rng.choice((' ', '|'))}"
                       for kind in chosen)
        arguments: list[Argument] = []
        for kind in chosen:
            if (kind[-1] == "s" and kind != "ps") or kind[:2] in ("pI", "pi"):
                long = rng.random() < 0.1
                arguments.append(bytes(rng.choices(b"text 01", k=rng.choice((60, 200, 400))))
                                 if long else bytes(rng.choices(b"xyz.", k=rng.randrange(16, 20))))
            else:
                arguments.append(rng.choice((0, 1, 255, 1 << 31, 1 << 63, rng.getrandbits(40))))
        out.append((text.encode(), arguments, OUT_BYTES))
    return out


def test_random_compiled() -> None:
    for text, arguments, size in random_cases(1, 40):
        obj = build(SNPRINTF, text, arguments, size)
        assert compiled(obj, 0) == interpreted(obj), text


@pytest.mark.root
@needs_bpf()[1]
def test_random_kernel() -> None:
    for text, arguments, size in random_cases(2, 400):
        obj = build(SNPRINTF, text, arguments, size)
        assert interpreted(obj) == in_kernel(obj), (text, arguments)
