"""bpf(2): programs, maps, links, and what is said when the kernel refuses."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from tests.nets import VethPair, entered
from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall as bpf
from xdp_runtime.bpf_syscall import ProgType, XdpFlag
from xdp_runtime.errors import LoadError, PortError, VerifyError
from xdp_runtime.isa import Call, Exit, Imm, Insn, Load, LoadMap, Mov, Reg, encode
from xdp_runtime.kernel import load_raw
from xdp_runtime.object import MapType

pytestmark = needs_bpf()

PASS = encode((Mov(True, 0, Imm(2)), Exit()))
FRAME = bytes(60)


@pytest.fixture
def passing():
    fd = load_raw(PASS)
    yield fd
    os.close(fd)


def test_possible_cpus() -> None:
    assert bpf.possible_cpus() >= len(os.sched_getaffinity(0))


def test_map_operations() -> None:
    fd = bpf.map_create(MapType.HASH, 4, 8, 2, name="a name with spaces, and long")
    try:
        key, other, third = b"aaaa", b"bbbb", b"cccc"
        bpf.map_update(fd, key, b"12345678")
        assert bpf.map_lookup(fd, key, 8) == b"12345678"
        with pytest.raises(FileExistsError):
            bpf.map_update(fd, key, b"87654321", 1)  # BPF_NOEXIST
        with pytest.raises(FileNotFoundError):
            bpf.map_update(fd, other, b"87654321", 2)  # BPF_EXIST
        bpf.map_update(fd, other, b"87654321")
        with pytest.raises(OSError) as full:
            bpf.map_update(fd, third, b"87654321")
        assert full.value.errno == errno.E2BIG
        first = bpf.map_next_key(fd, None, 4)
        assert {first, bpf.map_next_key(fd, first, 4)} == {key, other}
        assert bpf.map_lookup_and_delete(fd, other, 8) == b"87654321"
        bpf.map_delete(fd, key)
        with pytest.raises(FileNotFoundError):
            bpf.map_next_key(fd, None, 4)
    finally:
        os.close(fd)


def test_frozen_map() -> None:
    fd = bpf.map_create(MapType.ARRAY, 4, 8, 1)
    try:
        bpf.map_freeze(fd)
        with pytest.raises(PermissionError):
            bpf.map_update(fd, bytes(4), bytes(8))
    finally:
        os.close(fd)


def test_impossible_map() -> None:
    with pytest.raises(OSError) as refused:
        bpf.map_create(MapType.ARRAY, 3, 8, 1)
    assert refused.value.errno == errno.EINVAL
    assert "MAP_CREATE" in str(refused.value)


def test_run(passing: int) -> None:
    run = bpf.prog_test_run(passing, FRAME, out_bytes=60)
    assert (run.retval, run.data_out) == (2, FRAME)
    assert bpf.prog_test_run(passing, FRAME, repeat=100_000).duration_ns < 10_000


def test_too_little_room(passing: int) -> None:
    with pytest.raises(OSError) as refused:
        bpf.prog_test_run(passing, FRAME, out_bytes=59)
    assert refused.value.errno == errno.ENOSPC


def test_too_short(passing: int) -> None:
    with pytest.raises(OSError) as refused:
        bpf.prog_test_run(passing, FRAME[:13], out_bytes=60)
    assert refused.value.errno == errno.EINVAL


def test_verifier_log() -> None:
    bad = encode((Load(2, 1, 0, 4), Load(0, 2, 0, 4), Exit()))
    with pytest.raises(VerifyError) as refused:
        load_raw(bad, name="reader")
    assert "program reader" in str(refused.value)
    assert "outside of the packet" in refused.value.why
    assert refused.value.insn == 1
    assert "invalid access to packet" in refused.value.detail


def test_licence_matters() -> None:
    insns: tuple[Insn | None, ...] = (
        Mov(True, 1, Reg(10)), Mov(True, 2, Imm(0)), Call(6), Exit())  # bpf_trace_printk
    with pytest.raises(VerifyError):
        load_raw(encode(insns), license="Proprietary")


def test_not_a_program() -> None:
    with pytest.raises(LoadError):
        load_raw(b"", name="empty")
    with pytest.raises(LoadError):
        load_raw(PASS, prog_type=999)  # type: ignore[arg-type]


def test_xskmap_redirect_program() -> None:
    """The program an AF_XDP port attaches: a lookup miss passes."""
    xskmap = bpf.map_create(MapType.XSKMAP, 4, 4, 4, name="xsks")
    insns: tuple[Insn | None, ...] = (
        Load(2, 1, 16, 4), LoadMap(1, 0), None, Mov(True, 3, Imm(2)), Call(51), Exit())
    program = load_raw(encode(insns, [xskmap]))
    try:
        assert bpf.prog_test_run(program, FRAME).retval == 2
    finally:
        os.close(program)
        os.close(xskmap)


@pytest.mark.netns
@pytest.mark.parametrize("mode", [XdpFlag.DRV_MODE, XdpFlag.SKB_MODE])
def test_xdp_link(passing: int, mode: XdpFlag) -> None:
    with VethPair() as pair, entered(pair.a.ns):
        link = bpf.attach_xdp_link(passing, pair.a.ifindex, mode)
        with pytest.raises(PortError, match="another XDP program"):
            bpf.attach_xdp_link(passing, pair.a.ifindex, mode)
        os.close(link)
        os.close(bpf.attach_xdp_link(passing, pair.a.ifindex, mode))


@pytest.mark.netns
def test_xdp_link_refused(passing: int) -> None:
    with VethPair() as pair, entered(pair.a.ns):
        with pytest.raises(PortError, match=f"interface {1 << 30}"):
            bpf.attach_xdp_link(passing, 1 << 30)
        with pytest.raises(PortError, match="skb mode"):
            bpf.attach_xdp_link(passing, 1, XdpFlag.DRV_MODE)  # loopback


@pytest.mark.netns
def test_large_mtu_wants_frags(passing: int) -> None:
    with VethPair(mtu=9000) as pair, entered(pair.a.ns), \
            pytest.raises(PortError, match="MTU"):
        bpf.attach_xdp_link(passing, pair.a.ifindex, XdpFlag.DRV_MODE)


@pytest.mark.netns
def test_tcx_link() -> None:
    drop = load_raw(encode((Mov(True, 0, Imm(2)), Exit())), ProgType.SCHED_CLS)  # TC_ACT_SHOT
    try:
        with VethPair() as pair:
            with entered(pair.b.ns):
                link = bpf.attach_tcx_link(drop, pair.b.ifindex)
            assert not pair.ping()
            os.close(link)
            assert pair.ping()
    finally:
        os.close(drop)


@pytest.mark.netns
def test_ingress_ifindex_reaches_the_program(passing: int) -> None:
    shows = load_raw(encode((Load(0, 1, 12, 4), Exit())))
    try:
        with VethPair() as pair, entered(pair.a.ns):
            ctx = struct.pack("=6I", 0, len(FRAME), 0, pair.a.ifindex, 0, 0)
            link = bpf.attach_xdp_link(passing, pair.a.ifindex, XdpFlag.DRV_MODE)
            assert bpf.prog_test_run(shows, FRAME, ctx=ctx).retval == pair.a.ifindex
            os.close(link)
    finally:
        os.close(shows)
