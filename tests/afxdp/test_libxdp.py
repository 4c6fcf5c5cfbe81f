"""libxdp beside us: what its dispatcher comes to here, and that neither takes the other's place."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.afxdp.network import link, marks, open_port, opened
from tests.control.run_xdpu import EXAMPLES, xdpu
from tests.nets import End, VethPair, entered
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import AttachType, XdpFlag, link_create, prog_load
from xdp_runtime.errors import PortError
from xdp_runtime.isa import encode

pytestmark = marks()
_BPFFS = "/sys/fs/bpf"  # where libxdp keeps dispatchers; ip netns exec has mounted /sys anew
_ATTACH = """
import ctypes, sys
lib = ctypes.CDLL("libxdp.so.1", use_errno=True)
lib.libxdp_set_print(None)
lib.xdp_program__open_file.restype = ctypes.c_void_p
program = ctypes.c_void_p(lib.xdp_program__open_file(sys.argv[1].encode(), b"xdp", None))
print(lib.xdp_program__attach(program, int(sys.argv[2]), 1, 0))
"""


def by_libxdp(end: End) -> int:
    """xdp_program__attach in native mode, by another process -> its errno, 0 if it is there."""
    try:
        ctypes.CDLL("libxdp.so.1")
    except OSError:
        pytest.skip("no libxdp.so.1 (apt install libxdp1)")
    done = subprocess.run(
        ["ip", "netns", "exec", end.ns, "sh", "-c", f'mount -t bpf bpf {_BPFFS} && exec "$@"', "sh",
         sys.executable, "-c", _ATTACH, str(EXAMPLES / "pass.o"), str(end.ifindex)],
        capture_output=True, text=True, check=True)
    return -int(done.stdout.splitlines()[-1])


@contextmanager
def attached(end: End, name: str) -> Iterator[int]:
    """A program of that name on the interface, held by a link."""
    with entered(end.ns):
        fd = prog_load(encode(assemble("r0 = 2\nexit\n"), []), name=name)
        held = link_create(fd, end.ifindex, AttachType.XDP, XdpFlag.DRV_MODE)
    os.close(fd)
    try:
        yield int(link(end)["xdp"]["prog"]["id"])
    finally:
        os.close(held)


def test_who_comes_later_is_refused(wire: VethPair) -> None:
    with opened(wire.a) as port:
        ours = link(wire.a)["xdp"]["prog"]["id"]
        assert by_libxdp(wire.a) in (errno.EBUSY, errno.EEXIST)
        assert link(wire.a)["xdp"]["prog"]["id"] == ours
        port.check()


def test_who_was_there_first_is_named(wire: VethPair) -> None:
    """Its dispatcher where the kernel loads programs of type EXT; else its program alone."""
    assert by_libxdp(wire.a) == 0
    said = _refusal(wire.a)
    there = link(wire.a)["xdp"]["prog"]
    assert f"another XDP program is attached ({there['name']} id {there['id']}" in said
    dispatcher = there["name"] == "xdp_dispatcher"
    assert (f"xdp-loader unload {wire.a.ifname} --all" in said) == dispatcher
    assert (f"ip link set dev {wire.a.ifname} xdp off" in said) != dispatcher


@pytest.mark.parametrize("mode", ["native", "generic", "auto"])
def test_a_dispatcher(wire: VethPair, mode: str) -> None:
    """Whoever made it: one sentence, exit code 3, and it stays."""
    with attached(wire.a, "xdp_dispatcher") as number:
        said = _refusal(wire.a)
        assert f"another XDP program is attached (xdp_dispatcher id {number} held by link" in said
        assert said.endswith(f"(xdp-loader unload {wire.a.ifname} --all)")
        done = xdpu("run", str(EXAMPLES / "drop.o"), "--iface", wire.a.ifname, "--mode", mode,
                    prefix=("ip", "netns", "exec", wire.a.ns))
        assert done.returncode == 3 and "xdp_dispatcher" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert link(wire.a)["xdp"]["prog"]["id"] == number


def _refusal(end: End) -> str:
    with pytest.raises(PortError) as caught:
        open_port(end)
    return str(caught.value)


@pytest.fixture
def wire() -> Iterator[VethPair]:
    with VethPair(subnet=84) as pair:
        yield pair


