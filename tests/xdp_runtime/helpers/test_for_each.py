"""bpf_for_each_map_elem over every kind of map the kernel allows: interpreted = compiled = kernel.

Hashes promise no order, so where the callback stops early only the number of rounds is compared.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import bpf, possible_cpus
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("foreach.o")
HASHES = ("hash", "lru", "percpu_hash", "lru_percpu")
MAPS = (*HASHES, "array", "percpu_array")
PER_CPU = ("percpu_hash", "lru_percpu", "percpu_array")
EINVAL, OBJ_GET = -22, 7
COMMAND = struct.Struct("<QIIqQQQ")
FILLED = 40
# flags, stop after, delete mask
COMMANDS = ((0, 0, 0), (0, 0, 0), (0, 1, 0), (0, 7, 0), (1, 0, 0), (1 << 40, 0, 0), (0, 0, 1),
            (0, 0, 4), (0, 0, 0xFFFFFFFF), (0, 0, 0))


def key_of(name: str, number: int) -> bytes:
    return struct.pack("<I", number) + (b"\5\6" if name in HASHES else b"")


def value_of(number: int) -> bytes:
    return struct.pack("<QI4x", 0, number * number + 1)


def packet_of(flags: int, stop_after: int, mask: int) -> bytes:
    return COMMAND.pack(flags, stop_after, mask, 0, 0, 0, 0) + bytes(20)


def answer(name: str, packet: bytes) -> tuple[int, ...]:
    _, stop_after, _, *results = COMMAND.unpack_from(packet)
    return (results[0],) if stop_after and name in HASHES else tuple(results)


def interpreted(name: str) -> list[tuple[int, ...]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program(f"each_{name}"))
    model = next(model for model in machine.maps if model.spec.name == name)
    for number in range(FILLED):
        assert model.update(key_of(name, number), value_of(number)) == 0
    return results(name, lambda packet: result(machine.run(packet)), lambda: dict(model.items()))


def result(run: Any) -> tuple[int, bytes]:
    return run.verdict if hasattr(run, "verdict") else run.retval, run.data_out


def results(name: str, run: Callable[[bytes], tuple[int, bytes]],
            items: Callable[[], dict[bytes, Any]]) -> list[tuple[int, ...]]:
    """What the commands answer, and what is in the map after two whole rounds and at the end."""
    out = []
    for number, command in enumerate(COMMANDS):
        verdict, packet = run(packet_of(*command))
        out.append((verdict, *answer(name, packet)))
        if number == 1:
            out.append(state(items()))
    left, _, keys = state(items())
    return [*out, (left, keys)]


def state(items: dict[bytes, Any]) -> tuple[int, int, int]:
    """Keys, how often values were visited, the sum of the keys."""
    total = 0
    for value in items.values():
        parts = value if isinstance(value, tuple | list) else [
            value[at : at + 16] for at in range(0, len(value), 16)]
        total += sum(int.from_bytes(part[:8], "little") for part in parts)
    return (len(items), total, sum(int.from_bytes(key[:4], "little") for key in items))


def test_what_is_expected() -> None:
    for name in MAPS:
        count = FILLED if name in HASHES else 64
        results = interpreted(name)
        assert results[0][:3] == (3, count, sum(range(1, count + 1)))
        assert results[2] == (count, 2 * count, sum(range(count)))
        assert [result[1] for result in results[3:7]] == [1, 7, EINVAL, EINVAL]
        assert results[7][-1] == (count // 2 if name in HASHES else 0), "half are odd"
        assert results[10][1] == (1 if name in HASHES else count), "number 0 has no bit"


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize("name", MAPS)
def test_compiled_is_interpreted(name: str, opt: int) -> None:
    with load(read_object(OBJECT), f"each_{name}", opt=opt) as program:
        one = program.raw_maps[name]
        for number in range(FILLED):
            value = value_of(number)
            one.update(key_of(name, number), [value] if name in PER_CPU else value)
        ours = results(name, lambda packet: result(program.run(packet)), lambda: dict(one.items()))
    assert ours == interpreted(name)


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("name", MAPS)
def test_kernel(name: str) -> None:
    """bpftool loads it: without types of functions the kernel takes no callback."""
    where = Path(f"/sys/fs/bpf/xdpu-test-each-{os.getpid()}")
    maps = Path(f"{where}-maps")
    obj = read_object(OBJECT)
    cpus = os.sched_getaffinity(0)
    subprocess.run(["bpftool", "prog", "loadall", OBJECT, where, "pinmaps", maps], check=True)
    try:
        os.sched_setaffinity(0, {min(cpus)})  # a value of a per-CPU map is this CPU's
        one = KernelMap.__new__(KernelMap)
        one.spec = next(spec for spec in obj.maps if spec.name == name)
        one._cpus = possible_cpus() if name in PER_CPU else 1
        one.fd = pinned(maps / name)
        spec = obj.program(f"each_{name}")
        with KernelProgram(spec, pinned(where / spec.name), {name: one}) as program:
            for number in range(FILLED):
                one.update(key_of(name, number), value_of(number) * one._cpus)
            theirs = results(name, lambda packet: result(program.run(packet)),
                             lambda: dict(one.items()))
    finally:
        os.sched_setaffinity(0, cpus)
        for directory in (where, maps):
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()
    assert theirs == interpreted(name)


def pinned(path: Path) -> int:
    name = ctypes.create_string_buffer(bytes(path))
    return bpf(OBJ_GET, bytearray(struct.pack("=QII", ctypes.addressof(name), 0, 0)))  # type: ignore[arg-type]
