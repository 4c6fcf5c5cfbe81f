"""CO-RE relocations and .kconfig: as libbpf computes them, against the types of a kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xdp_runtime import btf as bt
from xdp_runtime.btf import Btf
from xdp_runtime.btf_lazy import KERNEL_BTF, LazyBtf, read_types
from xdp_runtime.core_match import essential, find_path, follow, matches
from xdp_runtime.core_relo import Kind, describe, read_settled, relocate, settle
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.interp import Machine
from xdp_runtime.isa import POISON, Call, Load, LoadImm64, Store
from xdp_runtime.kconfig import encode, fill_kconfig
from xdp_runtime.object import Extern, Object, Relocation
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

OBJECTS = Path(__file__).parent / "objects"
CORE = OBJECTS / "relocations.o"
needs_kernel = pytest.mark.skipif(not KERNEL_BTF.exists(), reason=f"no {KERNEL_BTF}")


def held(insn: Any) -> int:
    """What an instruction holds that a relocation changes."""
    if isinstance(insn, Load | Store):
        return insn.off
    return int(insn.value if isinstance(insn, LoadImm64) else insn.src.value)


@needs_kernel
def test_the_file_is_the_same_on_every_machine() -> None:
    obj = read_object(CORE)
    before = obj.program("core").insns
    assert len(obj.program("core").relocations) > 30
    settled = settle(obj)
    assert obj.program("core").insns is before
    assert settled.program("core").relocations == ()
    assert settle(settled) is settled


@needs_kernel
def test_own_types_change_nothing(tmp_path: Path) -> None:
    """Against the types it was compiled with, an object stays as it is, nothing is missing."""
    from xdp_runtime.elf_file import open_elf

    own = tmp_path / "own.btf"
    section = open_elf(CORE.read_bytes(), "relocations.o").find(".BTF")
    assert section is not None
    own.write_bytes(section.data)
    obj = read_object(CORE)
    for target in (own, CORE):  # BTF by itself, and within an ELF file
        assert obj.btf is not None
        alone = [r for r in obj.program("core").relocations  # the others have flavours
                 if not re.match(r".*(task_struct|bpf_map_type|byte size)", describe(obj.btf, r))]
        assert len(alone) >= 10
        spec = replace(obj.program("core"), relocations=tuple(alone))
        done = relocate(obj, spec, target)
        assert (done.insns, done.poisoned) == (spec.insns, ())


@needs_kernel
@pytest.mark.root
@pytest.mark.skipif(shutil.which("bpftool") is None, reason="no bpftool")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_as_libbpf_does() -> None:
    """The same instructions hold the same values, the same are poisoned."""
    pin = f"/sys/fs/bpf/xdpu_core_{os.getpid()}"
    done = subprocess.run(["bpftool", "-d", "prog", "load", str(CORE), pin],
                          capture_output=True, text=True, timeout=60)
    Path(pin).unlink(missing_ok=True)
    obj = read_object(CORE)
    program = settle(obj).program("core")
    said = {int(slot): int(value) for slot, value in re.findall(
        r"prog 'core': relo #\d+: patched insn #(\d+) .* -> (-?\d+)$", done.stderr, flags=re.M)}
    dead = {int(slot) for slot in re.findall(
        r"prog 'core': relo #\d+: substituting insn #(\d+) w/ invalid insn", done.stderr)}
    if not said:
        pytest.skip(f"bpftool says nothing of relocations: {done.stderr[-200:]}")
    assert dead == {slot for slot, insn in enumerate(program.insns) if insn == Call(POISON)}
    assert {slot: held(program.insns[slot]) for slot in said} == said
    assert "'core': failed to load" not in done.stderr  # the kernel takes this one
    assert "'reached': failed to load" in done.stderr


@needs_kernel
def test_it_runs() -> None:
    obj = read_settled(CORE)
    machine = Machine(obj, obj.program("core"))
    assert machine.run(bytes(2000)).verdict == 2
    with load(read_object(CORE)) as program:
        assert program.run(bytes(2000)).retval == 2
        for index in range(35):
            cell = machine.maps[obj.map_index("out")].lookup(index.to_bytes(4, "little"))
            assert cell is not None
            key = index.to_bytes(4, "little")
            assert program.raw_maps["out"].lookup(key) == bytes(cell), index


@needs_kernel
def test_what_is_missing_is_refused_only_where_it_is_reached() -> None:
    obj = read_settled(CORE)
    assert verify(obj, obj.program("core")).ok
    report = verify(obj, obj.program("reached"))
    assert "do not have struct no_such.a (field byte offset)" in report.errors[0].text


@needs_kernel
def test_the_kernels_types_are_read_quickly() -> None:
    data = KERNEL_BTF.read_bytes()
    began = time.perf_counter()
    types = LazyBtf(data)
    assert time.perf_counter() - began < 1.0  # 0.06 s for 5.5 MB
    ids = list(types.named("task_struct"))
    assert [types.type(i).name for i in ids] == ["task_struct"]
    everything = Btf.parse(data)
    assert len(types) == len(everything.types)
    for type_id in range(0, len(types), 97):
        assert types.type(type_id) == everything.type(type_id)
    with pytest.raises(LoadError, match="there is no type"):
        types.type(len(types))


def test_essential_names() -> None:
    same = {"a": "a", "a___b": "a", "a___b___c": "a___b", "a____b": "a____b", "___a": "___a",
            "a___": "a___", "task_struct___v2": "task_struct", "": ""}
    assert {name: essential(name) for name in same} == same


# --- matching, on types made here ----------------------------------------------------------------
U32, I32, U64 = bt.Int("u32", 4, 0, 0, 32), bt.Int("i32", 4, 1, 0, 32), bt.Int("u64", 8, 0, 0, 64)


def types(*more: bt.Type) -> Btf:
    """1: u32, 2: i32, 3: u64, 4 and up: `more`"""
    return Btf((bt.Void(), U32, I32, U64, *more))


def test_a_field_is_found_within_nameless_members() -> None:
    local = types(bt.Struct("s", 8, (bt.Member("a", 1, 0), bt.Member("b", 1, 32))))
    target = types(bt.Struct("s", 24, (bt.Member("z", 3, 0), bt.Member("", 5, 64))),
                   bt.Union("", 16, (bt.Member("", 6, 0), bt.Member("q", 3, 0))),
                   bt.Struct("", 16, (bt.Member("a", 3, 0), bt.Member("b", 2, 96))))
    found = find_path(follow(local, 4, (0, 1)), target, 4)
    assert found is not None and found.bit_offset == 64 + 96
    assert find_path(follow(local, 4, (0, 0)), types(bt.Struct("s", 4, ())), 4) is None
    other = types(bt.Struct("s", 8, (bt.Member("b", 4, 0),)))
    assert find_path(follow(local, 4, (0, 1)), other, 4) is None  # a struct, not a number


def test_elements_of_arrays() -> None:
    local = types(bt.Struct("s", 40, (bt.Member("n", 1, 0), bt.Member("a", 5, 64))),
                  bt.Array(3, 1, 4))
    assert follow(local, 4, (1, 1, 2)).bit_offset == (40 + 8 + 16) * 8
    fewer = types(bt.Struct("s", 24, (bt.Member("a", 5, 0),)), bt.Array(3, 1, 2))
    assert find_path(follow(local, 4, (0, 1, 2)), fewer, 4) is None
    flexible = types(bt.Struct("s", 8, (bt.Member("n", 3, 0), bt.Member("a", 5, 64))),
                     bt.Array(3, 1, 0))
    found = find_path(follow(local, 4, (0, 1, 2)), flexible, 4)
    assert found is not None and found.bit_offset == (8 + 16) * 8
    for access in ((0, 1, 4), (0, 2), (0, 0, 0)):
        with pytest.raises(LoadError, match="leads nowhere"):
            follow(local, 4, access)


def test_whole_types_match() -> None:
    mine = types(bt.Struct("s", 8, (bt.Member("a", 1, 0), bt.Member("p", 5, 64))), bt.Ptr(6),
                 bt.Fwd("other", False))
    more = types(bt.Struct("s___v2", 99, (bt.Member("p", 5, 0), bt.Member("a", 1, 64),
                                          bt.Member("b", 1, 96))), bt.Ptr(6),
                 bt.Struct("other", 1, ()))
    assert matches(mine, 4, more, 4)
    assert not matches(more, 4, mine, 4)
    signed = types(bt.Struct("s", 8, (bt.Member("a", 2, 0), bt.Member("p", 5, 64))), bt.Ptr(6),
                   bt.Fwd("other", False))
    assert not matches(mine, 4, signed, 4)
    union = types(bt.Struct("s", 8, (bt.Member("a", 1, 0), bt.Member("p", 5, 64))), bt.Ptr(6),
                  bt.Union("other", 1, ()))
    assert not matches(mine, 4, union, 4)
    one = types(bt.EnumType("e", 4, False, (("A", 1),)))
    two = types(bt.EnumType("e", 4, False, (("B", 0), ("A___x", 7))))
    assert matches(one, 4, two, 4) and not matches(two, 4, one, 4)


# --- what makes no sense -------------------------------------------------------------------------
@needs_kernel
@pytest.mark.parametrize(("change", "message"), [
    ({"access": "0:99"}, "leads nowhere"),
    ({"access": "x"}, "makes no sense"),
    ({"access": "0:" * 80 + "0"}, "makes no sense"),
    ({"access": "-1"}, "makes no sense"),
    ({"kind": 99}, "of unknown kind 99"),
    ({"type": 0}, "which has no name"),
    ({"type": 1 << 20}, "there is no type"),
    ({"kind": Kind.ENUMVAL_VALUE}, "is no enumerator"),
    ({"kind": Kind.TYPE_SIZE, "access": "0:1"}, "of a whole type"),
])
def test_nonsense(change: dict[str, Any], message: str) -> None:
    obj = read_object(CORE)
    spec = obj.program("core")
    broken = replace(spec, relocations=(replace(spec.relocations[0], **change),))
    with pytest.raises(LoadError, match=message) as error:
        relocate(obj, broken)
    assert "relocations.o: core: instruction" in str(error.value)


@needs_kernel
def test_an_instruction_that_takes_none() -> None:
    obj = read_object(CORE)
    spec = obj.program("core")
    slot = next(i for i, insn in enumerate(spec.insns) if isinstance(insn, Call))
    one = spec.relocations[0]
    broken = replace(spec, relocations=(Relocation(slot, one.type, one.access, one.kind),))
    with pytest.raises(LoadError, match="an instruction that takes none"):
        relocate(obj, broken)


def test_files_of_types(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such file"):
        read_types(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"\x9f\xeb\x01")
    with pytest.raises(LoadError, match="too short"):
        read_types(tmp_path / "short")
    (tmp_path / "elf").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(LoadError, match="ELF file"):
        read_types(tmp_path / "elf")


# --- .kconfig ------------------------------------------------------------------------------------
def test_kconfig_values_are_laid_out_and_filled_in() -> None:
    obj = read_object(OBJECTS / "kconfig.o")
    assert [(e.name, e.offset) for e in obj.externs] == [
        ("CONFIG_HZ", 0), ("LINUX_KERNEL_VERSION", 4), ("CONFIG_NOT_THERE", 8),
        ("CONFIG_BPF_SYSCALL", 10), ("LINUX_HAS_BPF_COOKIE", 11), ("CONFIG_LOCALVERSION", 12)]
    config = {"CONFIG_HZ": "250", "CONFIG_BPF_SYSCALL": "y", "CONFIG_LOCALVERSION": '"-x"'}
    filled = next(m for m in fill_kconfig(obj, config) if m.name == ".kconfig")
    by_name = {e.name: filled.initial[e.offset:e.offset + e.size] for e in obj.externs}
    assert int.from_bytes(by_name["CONFIG_HZ"], "little") == 250
    assert by_name["CONFIG_BPF_SYSCALL"][0] == 1
    assert by_name["CONFIG_LOCALVERSION"].rstrip(b"\0") == b"-x"
    assert not any(by_name["CONFIG_NOT_THERE"])  # weak
    with pytest.raises(LoadError, match="extern CONFIG_HZ: this kernel's configuration does not"):
        fill_kconfig(obj, {})


def extern(kind: str, size: int, name: str = "CONFIG_X") -> Extern:
    return Extern(name, kind, 0, size, False, 1)


def test_what_is_not_of_the_configuration_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdp_runtime.kconfig.kernel_config", lambda: pytest.fail("asked"))
    obj = read_object(OBJECTS / "kconfig.o")
    version, other = extern("int", 4, "LINUX_KERNEL_VERSION"), extern("int", 4, "FOO")
    filled = fill_kconfig(replace(obj, externs=(version,)))[-1]
    assert int.from_bytes(filled.initial, "little") > 4 << 16
    with pytest.raises(LoadError, match=r"extern FOO: is of section .kconfig, which has only"):
        fill_kconfig(replace(obj, externs=(other,)))


def test_absurd_kconfig_text_takes_no_memory() -> None:
    data = (OBJECTS / "kconfig.o").read_bytes()
    array = re.compile(rb"\x00{3}\x03\x00{4}.{8}(\x08\x00\x00\x00)", re.DOTALL)  # of 8 elements
    (found,) = array.finditer(data)
    with pytest.raises(LoadError, match="extern CONFIG_LOCALVERSION: makes .kconfig .* absurdly"):
        read_object(data[:found.start(1)] + b"\xff" * 4 + data[found.end(1):], "kconfig.o")


@pytest.mark.parametrize(("kind", "size", "text", "raw"), [
    ("bool", 1, "y", b"\1"), ("bool", 1, "1", b"\1"), ("bool", 1, "n", b"\0"),
    ("tristate", 4, "m", b"\2\0\0\0"),
    ("char", 1, "m", b"m"), ("int", 4, "0x10", b"\x10\0\0\0"), ("int", 2, "65535", b"\xff\xff"),
    ("signed", 4, "-1", b"\xff" * 4), ("text", 4, '"abcdef"', b"abc\0")])
def test_kconfig_value(kind: str, size: int, text: str, raw: bytes) -> None:
    assert encode(extern(kind, size), text) == raw


@pytest.mark.parametrize(("kind", "size", "text"), [
    ("bool", 1, "m"), ("bool", 1, "2"), ("int", 4, "y"), ("int", 1, "256"), ("int", 4, "-1"),
    ("int", 4, '"a"'), ("text", 4, "5"), ("tristate", 4, "7"), ("int", 4, "")])
def test_kconfig_value_of_another_kind(kind: str, size: int, text: str) -> None:
    with pytest.raises(LoadError, match="extern CONFIG_X"):
        encode(extern(kind, size), text)


@pytest.mark.skipif(not Path("/proc/config.gz").exists(), reason="no /proc/config.gz")
def test_the_running_kernels_configuration() -> None:
    with load(read_object(OBJECTS / "kconfig.o")) as program:
        assert program.run(bytes(64)).retval == 2  # it says so if what it sees is right


def test_freplace_is_refused() -> None:
    obj = read_object(OBJECTS / "pass.o")
    spec = replace(obj.programs[0], section="freplace/f", kind="freplace/f")
    for name in (spec.name, None):
        with pytest.raises(LoadError, match="freplace"):
            load(Object("x", (spec,), ()), name)
