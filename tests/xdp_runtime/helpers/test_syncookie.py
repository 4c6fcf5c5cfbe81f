"""SYN cookies: interpreted, compiled and the kernel's have different secrets and the same rules."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.helpers import syncookie
from xdp_runtime.helpers.syncookie import announced_mss
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("cookies.o")
GENERATE_4, GENERATE_6, CHECK_4, CHECK_6 = range(4)
EINVAL, EACCES = -22, -13
TABLES = {GENERATE_4: (536, 1300, 1440, 1460), GENERATE_6: (1220, 1420, 1440, 8940)}
Call = Callable[[int, int, bytes, bytes], int]  # what, th_len, IP header, TCP header -> result


def a_packet(what: int, length: int, ip: bytes, tcp: bytes) -> bytes:
    return bytes((what, length, 0, 0, 0, 0, 0, 0)) + bytes(8) + ip + tcp


def result(verdict: int, data: bytes) -> int:
    assert verdict == 2
    return int.from_bytes(data[8:16], "little", signed=True)


def interpreter() -> Call:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("cookies"))

    def call(what: int, length: int, ip: bytes, tcp: bytes) -> int:
        run = machine.run(a_packet(what, length, ip, tcp))
        return result(run.verdict, run.data_out)

    return call


@contextmanager
def engine(name: str) -> Iterator[Call]:
    if name == "interpreted":
        yield interpreter()
        return
    obj = read_object(OBJECT)
    with load_into_kernel(obj, "cookies") if name == "kernel" else load(
            obj, "cookies", opt=int(name)) as program:
        def call(what: int, length: int, ip: bytes, tcp: bytes) -> int:
            run = program.run(a_packet(what, length, ip, tcp))
            return result(run.retval, run.data_out)

        yield call


ENGINES = ["interpreted", "0", "3", pytest.param("kernel", marks=needs_bpf())]


def headers(rng: random.Random, options: bytes = b"", offset: int | None = None
            ) -> tuple[bytes, bytes]:
    tcp = bytearray(rng.randbytes(20) + options.ljust(40, b"\0"))
    tcp[12] = (offset if offset is not None else 5 + (len(options) + 3) // 4) << 4
    return rng.randbytes(40), bytes(tcp)


def answer(tcp: bytes, cookie: int) -> bytes:
    """The ACK that a client sends to the SYN-ACK with this cookie."""
    sequence = struct.unpack_from(">I", tcp, 4)[0]
    return tcp[:4] + struct.pack(">II", sequence + 1 & 0xFFFFFFFF,
                                 (cookie & 0xFFFFFFFF) + 1 & 0xFFFFFFFF) + tcp[12:]


def an_option(mss: int) -> bytes:
    return struct.pack(">BBH", 2, 4, mss)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("what", [GENERATE_4, GENERATE_6])
def test_a_cookie_is_known_again(name: str, what: int) -> None:
    rng = random.Random(what)
    with engine(name) as call:
        for _ in range(100):
            ip, tcp = headers(rng, an_option(rng.randrange(1, 1 << 16)))
            cookie = call(what, 24, ip, tcp)
            assert cookie >> 32 in TABLES[what]
            ack = answer(tcp, cookie)
            assert call(what + 2, 0, ip, ack) == 0
            # the source address of either version, a port, and the numbers
            for at in (15, 19) if what == GENERATE_4 else (8, 39):
                other = bytearray(ip)
                other[at] ^= 1
                assert call(what + 2, 0, bytes(other), ack) == EACCES, at
            for at in (0, 3, 4, 7, 8, 10):
                wrong = bytearray(ack)
                wrong[at] ^= 0x10
                assert call(what + 2, 0, ip, bytes(wrong)) == EACCES, at
            # what is not looked at
            same = bytearray(ack)
            same[13] ^= 0xFF
            assert call(what + 2, 0, b"\xff" * 8 + ip[8:], bytes(same)) == 0


@pytest.mark.parametrize("name", ENGINES)
def test_another_minute_cannot_be_forged(name: str) -> None:
    """The top byte counts minutes, the 24 bits below are a hash of the minute."""
    rng = random.Random(3)
    with engine(name) as call:
        for _ in range(20):
            ip, tcp = headers(rng)
            cookie = call(GENERATE_4, 20, ip, tcp)
            for step in (1 << 24, -(1 << 24), -(2 << 24), 5 << 24):
                assert call(CHECK_4, 0, ip, answer(tcp, cookie + step)) == EACCES


def test_good_for_the_next_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    call = interpreter()
    ip, tcp = headers(random.Random(6))
    for minute in (1000, 0xFFFFFFFF):
        monkeypatch.setattr(syncookie, "_minutes", lambda now=minute: now)
        ack = answer(tcp, call(GENERATE_4, 20, ip, tcp))
        for later, expected in ((0, 0), (1, 0), (2, EACCES), (255, EACCES), (256, EACCES)):
            now = minute + later & 0xFFFFFFFF
            monkeypatch.setattr(syncookie, "_minutes", lambda now=now: now)
            assert call(CHECK_4, 0, ip, ack) == expected, later


@pytest.mark.parametrize("name", ENGINES)
def test_sequence_and_mss_move_the_cookie(name: str) -> None:
    """What is deterministic: the sequence number is added, and so is the index of the MSS."""
    rng = random.Random(4)
    with engine(name) as call:
        for what in (GENERATE_4, GENERATE_6):
            for _ in range(20):
                ip, tcp = headers(rng, an_option(1))
                base = call(what, 24, ip, tcp)
                sequence = struct.unpack_from(">I", tcp, 4)[0]
                moved = tcp[:4] + struct.pack(">I", sequence + 77 & 0xFFFFFFFF) + tcp[8:]
                assert (call(what, 24, ip, moved) - base) & 0xFFFFFFFF == 77
                for index, mss in enumerate(TABLES[what]):
                    bigger = call(what, 24, ip, tcp[:20] + an_option(mss) + tcp[24:])
                    assert bigger >> 32 == mss
                    assert (bigger - base) & 0xFFFFFF == index


def option_lists(rng: random.Random) -> list[tuple[int, bytes, bytes]]:
    """(th_len, IP header, TCP header), good and bad."""
    out = []
    for _ in range(400):
        options = b""
        while len(options) < 40 and rng.random() < 0.85:
            options += rng.choice([
                b"\x01", an_option(rng.choice((0, 1, 535, 536, 1299, 1300, 1439, 1440, 1459, 1460,
                                               1220, 1420, 8940, 65535))),
                bytes((2, rng.randrange(8))) + rng.randbytes(2),
                bytes((3, 3)) + rng.randbytes(1), bytes((8, 10)) + rng.randbytes(8),
                rng.randbytes(3), *([b"\0"] if rng.random() < 0.1 else [])])
        offset = rng.randrange(16) if rng.random() < 0.1 else None
        ip, tcp = headers(rng, options[:40], offset)
        length = rng.randrange(61) if rng.random() < 0.1 else (tcp[12] >> 4) * 4
        out.append((length, ip, tcp))
    return out


@pytest.mark.parametrize("opt", ["0", "3", pytest.param("kernel", marks=needs_bpf())])
def test_size_of_segments_and_errors_as_interpreted(opt: str) -> None:
    with engine("interpreted") as ours, engine(opt) as theirs:
        seen = set()
        for what in (GENERATE_4, GENERATE_6):
            for length, ip, tcp in option_lists(random.Random(what + 9)):
                one, other = ours(what, length, ip, tcp), theirs(what, length, ip, tcp)
                assert one >> 32 == other >> 32, (what, length, tcp.hex())
                seen.add(one if one < 0 else one >> 32)
        assert seen == {EINVAL, *TABLES[GENERATE_4], *TABLES[GENERATE_6]}


def test_the_last_mss_option_counts() -> None:
    tcp = bytes(12) + b"\x80" + bytes(7) + an_option(1000) + an_option(2000) + an_option(0)
    assert announced_mss(tcp) == 2000
