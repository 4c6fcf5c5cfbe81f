from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane import tap_device
from dataplane.tap import TapPort
from dataplane.tap_device import open_tap
from tests.nets import entered, in_ns, namespace
from xdp_runtime.errors import ConfigError, PortError

ROOT = Path(__file__).resolve().parents[2]
needs_tun = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(tap_device.TUN_PATH), reason="needs root and TUN")


@pytest.mark.parametrize(("name", "options", "message"), [
    ("sixteen-bytes-xx", {}, "1 to 15 bytes"), ("", {}, "1 to 15 bytes"),
    ("a/b", {}, "no '/'"), ("a b", {}, "no '/'"), ("..", {}, "no '/'"),
    ("t", {"queues": 0}, "0 queues"), ("t", {"queues": 257}, "1 to 256"),
    ("t", {"vnet_hdr": 11}, "10 or 12"), ("t", {"offloads": True}, "told in the vnet header")])
def test_refuses_what_cannot_be(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_tap(name, **options)   # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "message"), [
    (errno.ENOENT, "tap t0: /dev/net/tun does not exist (modprobe tun"),
    (errno.EACCES, "tap t0: /dev/net/tun may not be opened (run as root"),
    (errno.EMFILE, "tap t0: /dev/net/tun, Too many open files")])
def test_no_tun(monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PortError) as caught:
        open_tap("t0")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("code", "message"), [
    (errno.EPERM, "not permitted (run as root"), (errno.EBUSY, "in use by another process"),
    (errno.EINVAL, "no multi-queue TAP"), (errno.E2BIG, "ask for fewer queues"),
    (errno.ENOMEM, "Cannot allocate memory")])
def test_kernel_refuses(monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    closed: list[int] = []

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, "open", lambda *_: 99)
    monkeypatch.setattr(os, "close", closed.append)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(PortError) as caught:
        open_tap("t0")
    assert message in str(caught.value)
    assert closed == [99]


@needs_tun
@pytest.mark.netns
class TestReal:
    """In a namespace of its own: each test is one script."""

    @pytest.fixture
    def run(self, tmp_path: Path, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
        name = f"xdpu-t{os.getpid()}-tap{abs(hash(request.node.name)) % 10000}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        head = "import os, socket, subprocess\nfrom dataplane.tap_device import open_tap\n"

        def script(code: str) -> str:
            done = subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", head + code],
                                  cwd=ROOT, capture_output=True, text=True)
            return done.stdout + done.stderr
        yield script
        subprocess.run(["ip", "netns", "del", name], check=True)

    def test_frames_and_vanishing(self, run) -> None:  # type: ignore[no-untyped-def]
        out = run("""
import select
with open_tap("tap%d", mac="02:00:00:00:00:05") as tap:
    assert tap.name == "tap0" and socket.if_nametoindex("tap0") == tap.ifindex
    assert not os.get_blocking(tap.fd) and not os.get_inheritable(tap.fd)
    assert open("/sys/class/net/tap0/address").read().strip() == "02:00:00:00:00:05"
    subprocess.run("ip link set tap0 up; ip addr add 10.0.0.1/24 dev tap0; "
                   "sysctl -qw net.ipv6.conf.tap0.disable_ipv6=1", shell=True)
    arp = bytes.fromhex("ffffffffffff020000000009" "0806" "0001080006040001"
                        "020000000009" "0a000009" "000000000000" "0a000001")
    os.write(tap.fd, arp)
    for _ in range(20):
        assert select.select([tap.fd], [], [], 2)[0]
        frame = os.read(tap.fd, 2048)
        if frame[12:14] == b"\\x08\\x06":
            break
    assert frame[:6].hex() == "020000000009" and frame[20:22] == b"\\0\\2", frame.hex()
assert "tap0" not in [name for _, name in socket.if_nameindex()]
print("fine")
""")
        assert out == "fine\n"

    def test_queues_and_header(self, run) -> None:  # type: ignore[no-untyped-def]
        out = run("""
import fcntl, struct
tap = open_tap("many", queues=3, vnet_hdr=True, nonblocking=False)
assert len(set(tap.fds)) == 3 and tap.vnet_hdr_bytes == 12 and os.get_blocking(tap.fd)
for fd in tap.fds:
    assert struct.unpack("=i", fcntl.ioctl(fd, 0x800454D7, bytes(4))) == (12,)
assert open_tap("ten", vnet_hdr=10).vnet_hdr_bytes == 10
print(len(os.listdir("/sys/class/net/many/queues")))
""")
        assert out == "6\n"

    def test_conflicts(self, run) -> None:  # type: ignore[no-untyped-def]
        out = run("""
from xdp_runtime.errors import XdpuError
subprocess.run("ip link add v0 type veth peer name v1; ip tuntap add single mode tap", shell=True)
for name, mac in (("v0", None), ("single", None), ("t0", "01:00:00:00:00:01")):
    try:
        open_tap(name, mac=mac)
    except XdpuError as e:
        print(e)
print([name for _, name in socket.if_nameindex() if name == "t0"])
""")
        lines = out.splitlines()
        assert lines[0].startswith("tap v0: an interface of that name is no multi-queue TAP")
        assert lines[1].startswith("tap single: an interface of that name is no multi-queue TAP")
        assert lines[2].startswith("tap t0: the MAC address 01:00:00:00:00:01 is refused")
        assert lines[3] == "[]"


def test_numbers_are_the_kernels() -> None:
    """_IOW('T', n, unsigned int), from linux/if_tun.h."""
    def iow(number: int) -> int:
        return 1 << 30 | 4 << 16 | ord("T") << 8 | number
    numbers = tap_device.TUNSETIFF, tap_device.TUNSETOFFLOAD, tap_device.TUNSETVNETHDRSZ
    assert numbers == (iow(202), iow(208), iow(216))


@needs_tun
def test_offloads_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On where they are asked for; a kernel that refuses is heard, and done without."""
    def features(name: str) -> dict[str, str]:
        lines = in_ns(ns, "ethtool", "-k", name).stdout.splitlines()[1:]
        return {key.strip(): value.split()[0] for key, value in (line.split(":") for line in lines)}

    told = "tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation", \
        "tx-tcp-ecn-segmentation"
    with namespace("offload") as ns, entered(ns):
        for offloads, state in ((False, "off"), (True, "on")):
            with open_tap("t0", 2, True, offloads=offloads) as tap:
                assert (tap.offloads, tap.refused) == (offloads, "")
                assert {features("t0")[name] for name in told} == {state}

        ioctl = fcntl.ioctl

        def older(fd: int, request: int, *argument: Any) -> Any:
            if request == tap_device.TUNSETOFFLOAD and argument[0]:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return ioctl(fd, request, *argument)

        monkeypatch.setattr(fcntl, "ioctl", older)
        port = TapPort.open("t1", offloads=True)
        assert "no checksums and TSO" in port.mode and "Invalid argument" in port.mode
        assert {features("t1")[name] for name in told} == {"off"}
        port.close()
