"""Programs compiled ahead of time do what the same programs do in a run: bytes, verdicts, maps."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from tests.examples.test_examples import EXAMPLES, LOOPBACK, NAMES, entries
from tests.packets import packets_for
from tests.xdp_runtime.aot.library import Library
from xdp_runtime.aot import build
from xdp_runtime.compiler.aot import Where, compile_ahead, parse_target
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError, LoadError, XdpuError
from xdp_runtime.object import MapType
from xdp_runtime.program import load

ENOENT, EEXIST, EINVAL, EOPNOTSUPP = 2, 17, 22, 95
BALANCER = Path(__file__).parents[1] / "programs" / "balancer_small.o"


def made(name: str, folder: Path) -> Library:
    obj = read_object(EXAMPLES / f"{name}.o")
    build(obj, obj.program(), folder / f"{name}.so")
    return Library(folder / f"{name}.so")


@pytest.mark.parametrize("name", NAMES)
def test_a_library_answers_as_the_program_does(name: str, tmp_path: Path) -> None:
    library = made(name, tmp_path)
    obj = read_object(EXAMPLES / f"{name}.o")
    packets = packets_for(name, 200)
    with load(obj) as program:
        for map_name, key, value in entries(name, True):
            assert library.update(map_name, key, value) == 0
            program.raw_maps[map_name].update(key, value)
        expected = []
        for content in packets:
            result = program.run(content, ingress_ifindex=LOOPBACK)
            expected.append((result.retval, result.data_out, result.meta, result.redirect_ifindex))
        got = [row for at in range(0, 200, 50)
               for row in library.run(packets[at:at + 50], LOOPBACK)]
        assert got == expected
        for one in program.all_maps:
            if one.spec.type in (MapType.HASH, MapType.ARRAY, MapType.PERCPU_ARRAY) and (
                    one.spec.name != "surroundings"):
                size = one.spec.value_size
                theirs = {key: value[:size] if isinstance(value, bytes) else value
                          for key, value in library.items(
                              one.spec.name, one.spec.key_size, (size + 7) & ~7).items()}
                mine = {key: value[0] if isinstance(value, list) else value
                        for key, value in one.items()}
                assert theirs == mine, one.spec.name


@pytest.mark.parametrize(("name", "program"), [("slices", "whole"), ("text", "text"),
                                               ("iterators", "loops")])
def test_kernel_functions_in_a_library(name: str, program: str, tmp_path: Path) -> None:
    obj = read_object(HELPERS / f"{name}.o")
    build(obj, obj.program(program), tmp_path / f"{name}.so")
    library = Library(tmp_path / f"{name}.so")
    module = importlib.import_module(f"tests.xdp_runtime.helpers.test_{MADE[name]}")
    given = module.packets(5, 200, 600) if name == "slices" else module.packets(5, 200)
    with load(obj, program) as loaded:
        for packet in given:
            run = loaded.run(packet)
            assert library.run([packet], 0)[0][:2] == (run.retval, run.data_out)


HELPERS = Path(__file__).parents[1] / "helpers"
MADE = {"slices": "dynptr_slice", "text": "text_search", "iterators": "iterator"}


def test_maps_of_a_library_refuse_as_bpf_does(tmp_path: Path) -> None:
    library = made("firewall", tmp_path)
    key, value = struct.pack("=H", 99), struct.pack("=Q", 7)
    assert library.lookup("blocked_ports", key, 8) == -ENOENT
    assert library.update("blocked_ports", key, value, 1) == 0
    assert library.update("blocked_ports", key, value, 1) == -EEXIST
    assert library.lookup("blocked_ports", key, 8) == value
    assert library.delete("blocked_ports", key) == 0
    assert library.delete("blocked_ports", key) == -ENOENT
    assert library.find("no_such_map") == 0


def test_a_library_exports_only_its_header(tmp_path: Path) -> None:
    obj = read_object(EXAMPLES / "firewall.o")
    build(obj, obj.program(), tmp_path / "firewall.so")
    with open(tmp_path / "firewall.so", "rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".dynsym")
        names = {symbol.name for symbol in table.iter_symbols()
                 if symbol.entry.st_shndx != "SHN_UNDEF"}
    assert names == {"xdpu_program", "xdpu_workers", "xdpu_run", "xdpu_maps", "xdpu_map_count",
                     "xdpu_map_find", "xdpu_map_lookup", "xdpu_map_update", "xdpu_map_delete",
                     "xdpu_map_next_key", "xdpu_ring_count", "xdpu_ring_consume",
                     "xdpu_ring_event", "xdpu_ring_lost", "xdpu_ring_produce"}


def test_two_libraries_have_seeds_of_their_own(tmp_path: Path) -> None:
    """The order of a hash's keys depends on its seed, drawn when a process loads the library."""
    made("flow_table", tmp_path)
    order = ("import sys; sys.path.insert(0, sys.argv[1])\n"
             "from pathlib import Path\n"
             "from tests.xdp_runtime.aot.library import Library\n"
             "library = Library(Path(sys.argv[2]))\n"
             "for n in range(64): library.update('flows', n.to_bytes(16, 'little'), bytes(24))\n"
             "print([key[0] for key in library.items('flows', 16, 24)])\n")
    root = str(Path(__file__).parents[3])
    orders = {subprocess.run([sys.executable, "-c", order, root, str(tmp_path / "flow_table.so")],
                             capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(orders) == 2
    assert len(set(map(len, (eval(text) for text in orders)))) == 1  # the same keys in each


@pytest.mark.parametrize("source", [EXAMPLES / "firewall.o", BALANCER], ids=lambda p: p.stem)
def test_machine_code_for_another_cpu(source: Path) -> None:
    obj = read_object(source)
    code = compile_ahead(obj, obj.program(), 1, Where(parse_target("arm64"), "neoverse-n1"))
    elf: Any = ELFFile(io.BytesIO(code))
    assert elf.get_machine_arch() == "AArch64"
    text = elf.get_section_by_name(".text").data()
    assert len(text) > 500 and text.count(bytes.fromhex("c0035fd6")) > 1  # ret
    undefined = {symbol.name for symbol in elf.get_section_by_name(".symtab").iter_symbols()
                 if symbol.entry.st_shndx == "SHN_UNDEF" and symbol.name}
    assert all(name.startswith("map.") or name in LIBC for name in undefined), undefined


LIBC = {"clock_gettime", "clock_getres", "times", "memcpy", "memset", "memmove", "memcmp", "write",
        "nanosleep", "close",
        "open", "read", "getpgid", "sched_yield", "getpid", "kill", "syscall", "poll",
        "__errno_location", "usleep", "bcmp"}


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-objdump") is None
                    and shutil.which("llvm-objdump-14") is None,
                    reason="no disassembler for AArch64 (llvm-14 or binutils-aarch64-linux-gnu)")
def test_machine_code_for_another_cpu_disassembles(tmp_path: Path) -> None:
    obj = read_object(EXAMPLES / "firewall.o")
    build(obj, obj.program(), tmp_path / "firewall.o", where=Where(parse_target("aarch64")))
    tool = shutil.which("aarch64-linux-gnu-objdump") or "llvm-objdump-14"
    said = subprocess.run([tool, "-d", str(tmp_path / "firewall.o")], capture_output=True,
                          text=True, check=True).stdout
    assert "<xdpu.batch>:" in said and "\tret" in said
    assert "undefined" not in said and "<unknown>" not in said


def test_what_cannot_be_ahead_is_refused(tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    obj = read_object(EXAMPLES / "pass.o")
    with pytest.raises(ConfigError, match="vax"):
        parse_target("vax")
    with pytest.raises(ConfigError, match="no-such-cpu"):
        compile_ahead(obj, obj.program(), 1, Where("", "no-such-cpu"))
    with pytest.raises(ConfigError, match="standalone"):
        build(obj, obj.program(), tmp_path / "x", where=Where(parse_target("aarch64")),
              standalone=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        build(obj, obj.program(), tmp_path / "none" / "x.o")
    device = tmp_path / "device"
    os.mkfifo(device)
    for out in (device, tmp_path, Path("/"), Path("")):
        with pytest.raises(ConfigError, match="is not a file that could be written"):
            build(obj, obj.program(), out)
    assert device.is_fifo()
    device.unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(XdpuError, match=r"no temporary files: No such .* or set TMPDIR"):
        build(obj, obj.program(), tmp_path / "x.so")
    timers = read_object(EXAMPLES.parent / "tests" / "xdp_runtime" / "helpers" / "timers.o")
    with pytest.raises(LoadError, match="uses timers, and nothing fires them"):
        build(timers, timers.program(), tmp_path / "timers.so")
    assert not list(tmp_path.iterdir())


def test_maps_of_maps(tmp_path: Path) -> None:
    """Also full inner hashes, and another map put in their place, by its number in xdpu_maps."""
    obj = read_object(Path(__file__).parent / "outer.o")
    names = [spec.name for spec in obj.maps]
    inner = ("even", "odd", "short_ones", "long_ones", "spare")
    build(obj, obj.program(), tmp_path / "outer.so")
    library = Library(tmp_path / "outer.so")
    with load(obj) as program:
        for more in ([], [(b"\1\0\0\0", "spare")], [(b"\0\0\0\0", "spare")]):
            for key, name in more:
                number = (names.index(name) + 1).to_bytes(4, "little")
                assert library.update("by_length", key, number) == 0
                assert library.lookup("by_length", key, 4) == number
                program.raw_maps["by_length"].set_inner(key, program.raw_maps[name])
            packets = [bytes(14 + 7 * n % 150) for n in range(300)]
            expected = [program.run(packet).retval for packet in packets]
            assert [row[0] for row in library.run(packets, 0)] == expected
            assert {1, 2, 3} >= set(expected) > {2}
            for name in inner:
                assert library.items(name, 4, 8) == dict(program.raw_maps[name].items()), name
    for name in ("even", "by_length", "none"):
        number = (names.index(name) + 1 if name in names else 99).to_bytes(4, "little")
        assert library.update("by_length", bytes(4), number) == -EINVAL
