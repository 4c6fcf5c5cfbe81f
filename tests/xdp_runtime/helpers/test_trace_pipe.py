"""What bpf_trace_printk and _vprintk write: the kernel's trace pipe = interpreted = compiled.

The kernel's text is read from an instance of our own (tracefs), which sees only this process.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.helpers.trace import TEXT_BYTES, read_trace
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

OBJECT = read_object(Path(__file__).with_name("prints.o"))
COMMAND = struct.Struct("<IIqQ104s160s")
KINDS = ("d", "i", "u", "x", "X", "ld", "lu", "lx", "lld", "llu", "llx", "llX", "c", "c", "px",
         "pS", "ps", "pB", "pxy", "s", "pks", "pus", "pI4", "pi6", "o", "f", "lll", "hd", "pI5",
         "pk", "n", "ls", "pM", "psx", "sx")
NUMBERS = (0, 1, 10, 65, 255, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 0x4100000042)
HEADER = re.compile(rb"(?:^|\n)[^\n]{16,80}: bpf_trace_printk: ")
Outcome = tuple[bytes, list[str]]


def packets(seed: int, count: int) -> list[bytes]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        good = rng.random() < 0.7
        chosen = [rng.choice(KINDS[:25] if good else KINDS) for _ in range(rng.randrange(6))]
        text = "".join(
            f"%{''.join(rng.choices('0+- ', k=rng.choice((0, 0, 1, 3))))}"
            f"{rng.choice(('', '', '', '3', '012', '40', '4294967300'))}{kind}"
            f"{rng.choice((' ', '|', '%%', '.', ': '))}" for kind in chosen).encode()
        text = rng.choice((b"", b"a ", b"\xc3\xa9 ")) + text
        text += rng.choice((b"\0", b"\0", b"\0x", b""))
        numbers = struct.pack("<13Q", *(rng.choice((*NUMBERS, rng.getrandbits(64)))
                                        for _ in range(13)))
        size = 8 * (len(chosen) if rng.random() < 0.9 else rng.randrange(14))
        out.append(COMMAND.pack(rng.random() < 0.3, max(len(text), 1), 0, size, numbers,
                                text[:160].ljust(160, b"\0")))
    return out


@contextmanager
def trace_pipe(where: Path) -> Iterator[int]:
    """What this process writes by the event bpf_trace_printk, without waiting."""
    if subprocess.run(["mount", "-t", "tracefs", "none", where], capture_output=True).returncode:
        pytest.skip("tracefs cannot be mounted")
    instance = where / "instances" / f"xdpu-{os.getpid()}"
    try:
        instance.mkdir()
        try:
            (instance / "set_event_pid").write_text(str(os.getpid()))
            (instance / "events/bpf_trace/bpf_trace_printk/enable").write_text("1")
            pipe = os.open(instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
            try:
                yield pipe
            finally:
                os.close(pipe)
        finally:
            (instance / "events/bpf_trace/bpf_trace_printk/enable").write_text("0")
            instance.rmdir()
    finally:
        subprocess.run(["umount", where], check=True)


def lines(pipe: int) -> list[str]:
    content = b""
    while True:
        try:
            content += os.read(pipe, 1 << 16)
        except BlockingIOError:
            return [shown(line) for line in HEADER.split(content.removesuffix(b"\n"))[1:]]


def shown(line: bytes) -> str:
    return line[:TEXT_BYTES].decode(errors="replace")


def interpreted(given: list[bytes]) -> list[Outcome]:
    machine = Machine(OBJECT, OBJECT.programs[0])
    results = map(machine.run, given)
    return [(result.data_out, list(result.trace)) for result in results]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    given, seen = packets(1, 600), 0
    with load(OBJECT, opt=opt) as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            data = program.run(packet).data_out
            texts, seen = read_trace(program.worker_bytes(0), seen)
            assert (data, texts) == expected, COMMAND.unpack(packet)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel(tmp_path: Path) -> None:
    given = packets(2, 1500)
    with trace_pipe(tmp_path) as pipe, load_into_kernel(OBJECT) as program:
        for packet, expected in zip(given, interpreted(given), strict=True):
            data = program.run(packet).data_out
            assert (data, lines(pipe)) == expected, COMMAND.unpack(packet)


def test_much_is_printed_and_much_refused() -> None:
    answers = [COMMAND.unpack(data)[2] for data, _ in interpreted(packets(1, 600))]
    assert sum(answer > 0 for answer in answers) > 200 < sum(answer == -22 for answer in answers)
