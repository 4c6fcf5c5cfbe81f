"""Objects in the kernel: maps of every shape, globals, program arrays, errors, clean closing."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.nets import VethPair, entered
from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link, possible_cpus
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError, PortError, VerifyError
from xdp_runtime.isa import Call, Exit, Imm, Insn, Load, LoadMap, LoadMapValue, Mov, Reg, Store
from xdp_runtime.kernel import KernelMap, load_into_kernel
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object, ProgramSpec

pytestmark = needs_bpf()

FRAME = bytes(range(60))
HELPERS = Path(__file__).with_name("helpers")
U32 = struct.Struct("=I")


def _program(*insns: Insn | None, name: str = "main", kind: str = "xdp") -> ProgramSpec:
    return ProgramSpec(name, kind, kind, insns)


def _object(*programs: ProgramSpec, maps: tuple[MapSpec, ...] = ()) -> Object:
    return Object("test.o", programs, maps, "GPL")


def _returns(value: int, name: str = "main", kind: str = "xdp") -> ProgramSpec:
    return _program(Mov(True, 0, Imm(value)), Exit(), name=name, kind=kind)


def _open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_verdict_and_packet() -> None:
    with load_into_kernel(_object(_returns(3))) as program:
        result = program.run(FRAME)
        assert (result.retval, result.data_out, result.meta) == (3, FRAME, b"")


def test_metadata_in_and_out() -> None:
    with load_into_kernel(_object(_returns(2))) as program:
        result = program.run(FRAME, meta=b"mark")
        assert (result.meta, result.data_out) == (b"mark", FRAME)


def test_loopback_is_the_default_interface() -> None:
    with load_into_kernel(_object(_program(Load(0, 1, 12, 4), Exit()))) as program:
        assert program.run(FRAME).retval == 1


@pytest.mark.netns
def test_ingress_interface_and_queue() -> None:
    shows_queue = _program(Load(0, 1, 16, 4), Exit())
    with VethPair(queues=2) as pair, entered(pair.a.ns), \
            load_into_kernel(_object(shows_queue)) as program:
        with pytest.raises(PortError, match=f"interface {1 << 30}"):
            program.run(FRAME, ingress_ifindex=1 << 30)
        link = attach_xdp_link(program.fd, pair.a.ifindex, XdpFlag.DRV_MODE)
        assert program.run(FRAME, ingress_ifindex=pair.a.ifindex, rx_queue=1).retval == 1
        with pytest.raises(PortError, match="queue 2"):
            program.run(FRAME, ingress_ifindex=pair.a.ifindex, rx_queue=2)
        os.close(link)


@pytest.mark.parametrize(("kind", "writable"), [(GlobalKind.RODATA, False), (GlobalKind.DATA, True),
                                                (GlobalKind.BSS, True)])
def test_globals(kind: GlobalKind, writable: bool) -> None:
    initial = b"" if kind is GlobalKind.BSS else bytes((9, 0, 0, 0, 7, 0, 0, 0))
    spec = MapSpec(".global", MapType.ARRAY, 4, 8, 1, global_kind=kind, initial=initial)
    second_word = _program(LoadMapValue(1, 0, 4), None, Load(0, 1, 0, 4), Exit())
    with load_into_kernel(_object(second_word, maps=(spec,))) as program:
        assert program.run(FRAME).retval == (7 if initial else 0)
        if writable:
            program.maps[".global"].update(bytes(4), U32.pack(1) + U32.pack(2))
            assert program.run(FRAME).retval == 2
        else:
            with pytest.raises(PermissionError):
                program.maps[".global"].update(bytes(4), bytes(8))


def test_rodata_is_read_only_for_programs() -> None:
    spec = MapSpec(".rodata", MapType.ARRAY, 4, 4, 1, global_kind=GlobalKind.RODATA)
    writes = _program(LoadMapValue(1, 0, 0), None, Store(1, 0, 4, Imm(1)), Mov(True, 0, Imm(2)),
                      Exit())
    with pytest.raises(VerifyError):
        load_into_kernel(_object(writes, maps=(spec,)))


def test_program_array_is_filled() -> None:
    table = MapSpec("table", MapType.PROG_ARRAY, 4, 4, 3, slots=((0, "drops"), (2, "drops")))

    def jump(slot: int) -> ProgramSpec:
        return _program(LoadMap(2, 0), None, Mov(True, 3, Imm(slot)), Call(12),
                        Mov(True, 0, Imm(2)), Exit())

    for slot, verdict in ((0, 1), (1, 2), (2, 1), (3, 2)):
        obj = _object(jump(slot), _returns(1, "drops"), maps=(table,))
        with load_into_kernel(obj) as program:
            assert program.run(FRAME).retval == verdict


def test_map_of_maps_is_filled() -> None:
    inner = MapSpec("inner", MapType.ARRAY, 4, 4, 1)
    outer = MapSpec("outer", MapType.ARRAY_OF_MAPS, 4, 4, 2, slots=((1, "inner"),), inner=inner)
    with load_into_kernel(_object(_returns(2), maps=(inner, outer))) as program:
        assert program.maps["outer"].lookup(U32.pack(1)) is not None
        assert program.maps["outer"].lookup(U32.pack(0)) is None


def test_frags_program() -> None:
    with load_into_kernel(_object(_returns(2, kind="xdp.frags"))) as program:
        frame = os.urandom(9000)
        assert program.run(frame).data_out == frame


def test_tc_program() -> None:
    with load_into_kernel(_object(_returns(2, kind="tc")), "main") as program:
        assert program.run(FRAME).retval == 2


def test_kind_the_kernel_is_not_asked_for() -> None:
    with pytest.raises(LoadError, match="only XDP and tc"):
        load_into_kernel(_object(_returns(0, kind="uprobe")), "main")


def test_refused_program_leaves_nothing_open() -> None:
    spec = MapSpec("m", MapType.HASH, 4, 4, 1)
    before = _open_fds()
    with pytest.raises(VerifyError):
        load_into_kernel(_object(_program(Mov(True, 0, Reg(7)), Exit()), maps=(spec,)))
    with pytest.raises(LoadError):
        load_into_kernel(_object(_returns(2), maps=(spec, MapSpec("n", 999, 4, 4, 1))))
    assert _open_fds() == before
    with load_into_kernel(_object(_returns(2), maps=(spec,))):
        assert _open_fds() == before + 2
    assert _open_fds() == before


def test_unsupported_map_is_named() -> None:
    with pytest.raises(LoadError, match="map odd.*type 999"):
        KernelMap(MapSpec("odd", 999, 4, 4, 1))
    with pytest.raises(LoadError, match="ARRAY with key 8"):
        KernelMap(MapSpec("odd", MapType.ARRAY, 8, 4, 1))


def test_hash_like_a_dict() -> None:
    with KernelMap(MapSpec("m", MapType.HASH, 4, 4, 8)) as table:
        assert table.lookup(b"none") is None
        content = {b"aaaa": b"1111", b"bbbb": b"2222", b"cccc": b"3333"}
        for key, value in content.items():
            table.update(key, value)
        assert dict(table.items()) == content
        assert set(table.keys()) == set(content)
        table.delete(b"aaaa")
        assert table.lookup_and_delete(b"bbbb") == b"2222"
        assert dict(table.items()) == {b"cccc": b"3333"}
        with pytest.raises(FileNotFoundError):
            table.delete(b"aaaa")
        with pytest.raises(ValueError, match="a key has 4 bytes"):
            table.lookup(b"aaa")
        with pytest.raises(ValueError, match="a value has 4 bytes"):
            table.update(b"aaaa", b"1")


@pytest.mark.parametrize("value_size", [4, 8, 12])
@pytest.mark.parametrize("map_type", [MapType.PERCPU_ARRAY, MapType.PERCPU_HASH])
def test_per_cpu_values(map_type: MapType, value_size: int) -> None:
    with KernelMap(MapSpec("m", map_type, 4, value_size, 2)) as table:
        value = bytes(range(value_size))
        table.update(U32.pack(1), value)
        assert table.lookup_percpu(U32.pack(1)) == (value,) * possible_cpus()
        each = tuple(bytes([cpu]) * value_size for cpu in range(possible_cpus()))
        table.update(U32.pack(1), b"".join(each))
        assert table.lookup_percpu(U32.pack(1)) == each
        assert table.lookup(U32.pack(1)) == b"".join(each)


def test_queue_has_no_key() -> None:
    with KernelMap(MapSpec("q", MapType.QUEUE, 0, 4, 2)) as queue:
        queue.update(b"", b"1111")
        queue.update(b"", b"2222")
        assert queue.lookup_and_delete() == b"1111"
        assert queue.lookup_and_delete() == b"2222"
        assert queue.lookup_and_delete() is None


def test_values_with_timers() -> None:
    with load_into_kernel(read_object(HELPERS / "timers.o"), "start_one") as program:
        hour = 3_600_000_000_000
        assert program.run(bytes(16) + struct.pack("<IIQ", 7, 0, hour)).retval == 2
        assert program.maps["many"].lookup(U32.pack(7)) is not None


def test_values_with_locks() -> None:
    """The kernel makes no LRU map of them."""
    obj = read_object(HELPERS / "locks.o")
    with pytest.raises(LoadError, match="map lru: the kernel does not make it"):
        load_into_kernel(obj, "count_globally")
    maps = tuple(replace(m, lock_at=-1) if m.name == "lru" else m for m in obj.maps)
    with load_into_kernel(replace(obj, maps=maps), "count_globally") as program:
        for _ in range(3):
            assert program.run(FRAME).retval == 2
        assert program.maps[".bss"].lookup(U32.pack(0), 4) == struct.pack("<QI4xQ", 3, 0, 6)
