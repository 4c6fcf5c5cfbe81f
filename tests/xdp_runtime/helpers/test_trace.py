"""bpf_trace_printk: compiled == interpreted; which formats, and how long, as in the kernel."""

from __future__ import annotations

import ctypes
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import RunState, compiled
from tests.xdp_runtime.oracle import agree, interpret
from xdp_runtime import state
from xdp_runtime.helpers import by_name, printf
from xdp_runtime.helpers.printf import EINVAL
from xdp_runtime.helpers.trace import TEXT_BYTES, read_trace
from xdp_runtime.isa import Alu, AluOp, Call, Exit, Imm, Insn, LoadImm64, Mov, Reg, Store

HELPER = by_name["trace_printk"]
U64 = (1 << 64) - 1
NUMBERS = (0, 1, 9, 10, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 63) - 1, U64,
           0x4100000042)
CONVERSIONS = ("d", "i", "u", "x", "X", "ld", "li", "lu", "lx", "lX", "lld", "llu", "llx", "llX",
               "c", "p", "px", "s", "o", "f", "l", "lll", "hd", "pI4", "pS", "n", "", "%", "lc",
               "ls")
FORMAT = st.lists(
    st.builds("%{}{}{}".format, st.text("0+- ", max_size=3),
              st.sampled_from(("", "1", "5", "20", "100")), st.sampled_from(CONVERSIONS))
    | st.text(" \n\tab:%\x7f\x01é", max_size=5), max_size=4).map("".join)

# (format, arguments, text): what printf would print
KNOWN = [
    (b"plain\0", (), b"plain"),
    (b"%d %u %x\0", (U64, U64, U64), b"-1 4294967295 ffffffff"),
    (b"%lld|%llu|%llX\0", (1 << 63, U64, 0xABC), b"-9223372036854775808|18446744073709551615|ABC"),
    (b"%5d|%-5d|%05d\0", (42, 42, U64 - 41), b"   42|42   |-0042"),
    (b"%+d|% d|%+u\0", (1, 1, 1), b"+1| 1|1"),
    (b"%c%3c%-3c|\0", (65, 66, 67), b"A  BC  |"),
    (b"100%%\0rest", (), b"100%"),
    (b"%px\0", (0xABCDEF,), b"0000000000abcdef"),
    (b"\0", (), b""),
    ("%d µs\0".encode(), (7,), "7 µs".encode()),
]
REFUSED = [b"", b"no end", b"%d %d %d %d\0", b"%o\0", b"%sx\0", b"%\0", b"%pI5\0", b"%hd\0",
           b"%5\0", b"\x7f\0", b"\x01\0", "%pé\0".encode(), b"%lll\0", b"%llld\0"]


def format_message(text: bytes, arguments: tuple[int, ...]) -> bytes | None:
    made = printf.prepare(text, arguments, lambda address, size: b"")
    return None if isinstance(made, int) else printf.render(1024, text, made)


def call(run: RunState, text: bytes, arguments: tuple[int, ...]) -> int:
    assert HELPER.template is not None
    memory = ctypes.create_string_buffer(text, max(len(text), 1))
    full = (*arguments, 0, 0, 0)[:3]
    return compiled(HELPER.template)(run.address, ctypes.addressof(memory), len(text), *full)


def a_run() -> RunState:
    return RunState(bytes(64), 0, 0, 64, 0, 64)


@pytest.mark.parametrize(("text", "arguments", "expected"), KNOWN)
def test_known(text: bytes, arguments: tuple[int, ...], expected: bytes) -> None:
    assert format_message(text, (*arguments, 0, 0, 0)[:3]) == expected


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: bytes) -> None:
    run = a_run()
    assert format_message(text, (1, 2, 3)) is None
    assert call(run, text, (1, 2, 3)) == -EINVAL & U64
    assert read_trace(memoryview(run.worker), 0) == ([], 0)
    lost = run.worker.raw[state.W_TRACE_LOST : state.W_TRACE_LOST + 8]
    assert int.from_bytes(lost, "little") == 1


@settings(deadline=None)  # the first call compiles
@given(FORMAT, st.tuples(*[st.sampled_from(NUMBERS) | st.integers(0, U64)] * 3))
def test_compiled_is_interpreted(text: str, arguments: tuple[int, int, int]) -> None:
    raw, run = text.encode() + b"\0", a_run()
    expected = format_message(raw, arguments)
    length = call(run, raw, arguments)
    if expected is None:
        assert length == -EINVAL & U64
        return
    assert length == len(expected)
    texts, _ = read_trace(memoryview(run.worker), 0)
    shown = expected[:TEXT_BYTES].partition(b"\0")[0]
    assert texts == [shown.decode(errors="replace")]


def test_long_text_is_cut_but_counted() -> None:
    run = a_run()
    assert call(run, b"%900d\0", (1,)) == 900
    assert read_trace(memoryview(run.worker), 0)[0] == [" " * TEXT_BYTES]


def test_what_is_behind_a_zero_byte_is_counted_only() -> None:
    """As in the kernel's trace pipe."""
    run = a_run()
    assert call(run, b"a%cb%d\0", (0, 5)) == 4
    assert read_trace(memoryview(run.worker), 0)[0] == ["a"]
    text = int.from_bytes(b"a%cb\0\0\0\0", "little")
    insns: list[Insn] = [LoadImm64(1, text), Store(10, -8, 8, Reg(1)), Mov(True, 1, Reg(10)),
             Alu(AluOp.ADD, True, 1, Imm(-8)), Mov(True, 2, Imm(5)), Mov(True, 3, Imm(0)),
             Call(HELPER.id), Exit()]
    assert interpret(insns).trace == ("a",)


def test_reading_in_turns() -> None:
    run, seen = a_run(), 0
    memory = memoryview(run.worker)
    for n in range(3):
        call(run, b"first %d\0", (n,))
    texts, seen = read_trace(memory, seen)
    assert texts == ["first 0", "first 1", "first 2"]
    assert read_trace(memory, seen) == ([], seen)
    call(run, b"more\0", ())
    assert read_trace(memory, seen)[0] == ["more"]


def test_what_was_overwritten_is_missing() -> None:
    run = a_run()
    for n in range(1000):
        call(run, b"%d\0", (n,))
    texts, seen = read_trace(memoryview(run.worker), 0)
    assert texts == [str(n) for n in range(1000 - state.TRACE_RECORDS + 1, 1000)]
    assert seen == 1000 * state.TRACE_RECORD_BYTES


def program(text: bytes, arguments: tuple[int, ...]) -> list[Insn]:
    """Puts the text on the stack; r0 = what trace_printk returns."""
    padded = text.ljust(len(text) + 7 & ~7, b"\1")
    insns: list[Insn] = []
    for at in range(0, len(padded), 8):
        insns += [LoadImm64(1, int.from_bytes(padded[at : at + 8], "little")),
                  Store(10, at - len(padded), 8, Reg(1))]
    insns += [Mov(True, 1, Reg(10)), Alu(AluOp.ADD, True, 1, Imm(-len(padded))),
              Mov(True, 2, Imm(len(text)))]
    insns += [LoadImm64(3 + n, argument) for n, argument in enumerate(arguments)]
    return [*insns, Call(HELPER.id), Exit()]


def test_unused_arguments_may_be_uninitialised() -> None:
    result = interpret(program(b"ok\0", ()))
    assert (result.r0, result.trace) == (2, ("ok",))


class TestKernel:
    """The result; the text is in test_trace_pipe.py."""

    pytestmark = needs_bpf()

    @pytest.mark.parametrize(("text", "arguments", "expected"), [
        known for known in KNOWN if b"px" not in known[0]])
    def test_known(self, text: bytes, arguments: tuple[int, ...], expected: bytes) -> None:
        assert agree(program(text, arguments)).r0 == len(expected)

    @pytest.mark.parametrize("text", [t for t in REFUSED if t])
    def test_refused(self, text: bytes) -> None:
        assert agree(program(text, (1, 2, 3))).r0 == -EINVAL & U64

    @pytest.mark.parametrize("before", [b"x", b"%p", b"%5", b"%l", b"%d", b"%c"])
    def test_every_byte(self, before: bytes) -> None:
        """As plain text, and behind what it may or may not end.  %5p shows a hash there."""
        for c in range(1, 256):
            if before + bytes([c]) != b"%5p":
                agree(program(before + bytes([c, 0]), (1, 2, 3)))

    def test_random(self) -> None:
        rng = random.Random(9)
        kinds = [c for c in CONVERSIONS if c not in ("p", "")]
        for _ in range(200):
            parts = ["%" + "".join(rng.choices("0+- ", k=rng.randrange(3)))
                     + rng.choice(("", "1", "7", "20")) + rng.choice(kinds)
                     for _ in range(rng.randrange(1, 4))]
            numbers = tuple(rng.choice((*NUMBERS, rng.getrandbits(64))) for _ in range(3))
            agree(program(rng.choice(("", "x")).join(parts).encode() + b"\0", numbers))
