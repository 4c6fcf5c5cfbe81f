from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control import features
from control import interface_features as on
from control.probe import Answer, Probe, ProbeResult
from dataplane.hostnet import Link
from dataplane.netdev import XDP_BASIC, XDP_ZEROCOPY
from xdp_runtime.errors import PortError

ROOT = Path(__file__).resolve().parents[2]
CARD = on.Interface(Link(3, "eth0", "02:00:00:00:00:01", 1500, 0x10001), "ice", (0, 0, 8),
                    (16, 16, 64), (64, 64), XDP_BASIC | XDP_ZEROCOPY, 0, 0)


def test_hint_only_for_a_no() -> None:
    def answer(ok: bool | None) -> ProbeResult:
        return Probe("p", lambda: (ok, "so it is"), "do this").run()
    assert [answer(ok).hint for ok in (True, None, False)] == ["", "", "do this"]
    assert str(answer(False)) == "p: so it is (do this)"


def test_failing_check_is_unknown() -> None:
    def check() -> Answer:
        raise PermissionError(13, "Permission denied")
    assert Probe("p", check, "h").run() == ProbeResult(
        "p", None, "cannot be found out, Permission denied")


def test_collect_is_complete_and_json() -> None:
    results = features.collect()
    assert [r.name for r in results] == [p.name for p in features.SYSTEM]
    data = json.loads(json.dumps([r.to_json() for r in results]))
    assert all(set(d) == {"name", "ok", "reason", "hint"} for d in data)
    assert all(r.hint for r in results if r.ok is False)


def test_text() -> None:
    assert features.to_text([ProbeResult("tap", True, "opens"),
                             ProbeResult("hugepages", False, "none", "reserve some"),
                             ProbeResult("x", None, "unknown")]) == (
        "tap        yes  opens\n"
        "hugepages  no   none\n"
        "                fix: reserve some\n"
        "x          ?    unknown")


def test_skip_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SYSTEM", (
        Probe("a", lambda: (True, "there"), ""), Probe("b", lambda: (False, "gone"), "get it")))
    assert features.skip_reason("a") is None
    assert features.skip_reason("a", "b") == "needs b: gone (get it)"
    with pytest.raises(KeyError):
        features.find("c")


@pytest.mark.parametrize(("release", "ok"), [
    ("5.18.0-generic", True), ("6.1.0-9-amd64", True), ("5.17.9", False), ("odd", None)])
def test_kernel(monkeypatch: pytest.MonkeyPatch, release: str, ok: bool | None) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    assert features.find("kernel").check()[0] is ok


@pytest.mark.parametrize(("limit", "capable", "ok"), [
    (resource.RLIM_INFINITY, False, True), (8 << 20, True, True), (8 << 20, False, False),
    (64 << 20, False, True)])
def test_memlock(monkeypatch: pytest.MonkeyPatch, limit: int, capable: bool, ok: bool) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(features, "has_capability", lambda *_: capable)
    assert features.find("memlock").check()[0] is ok


def test_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "effective_capabilities", lambda: 1 << 21)
    assert features.find("cap_bpf").run().ok and not features.find("net_admin").run().ok
    assert features.find("net_raw").run().reason == "CAP_NET_RAW missing"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_privileges() -> None:
    """A user without any gets an answer and a mend for each, and no exception."""
    done = subprocess.run([sys.executable, "-c", """
import os
from control import features, interface_features
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(features.to_text(features.collect("lo")))
"""], cwd=ROOT, capture_output=True, text=True)
    words = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()
             if not line.startswith(" ")}
    assert not done.stderr
    assert {words[n] for n in ("root", "net_admin", "net_raw", "cap_bpf", "af_xdp", "tap")} == {
        "no"}, done.stdout


@pytest.mark.parametrize(("check", "change", "ok", "reason"), [
    (on.check_up, {}, True, "is up"),
    (on.check_carrier, {"link": replace(CARD.link, flags=1)}, False, "no carrier"),
    (on.check_carrier, {"link": replace(CARD.link, flags=0)}, None, "unknown while"),
    (on.check_driver, {}, True, "ice"), (on.check_driver, {"driver": ""}, None, "does not say"),
    (on.check_native, {}, True, "native XDP"),
    (on.check_native, {"xdp_features": 0}, False, "ice has no native XDP"),
    (on.check_native, {"xdp_features": None}, True, "cannot be asked for details"),
    (on.check_native, {"xdp_features": None, "driver": "new"}, None, "unknown"),
    (on.check_zero_copy, {}, True, "ice offers zero-copy"),
    (on.check_zero_copy, {"xdp_features": 1}, False, "ice does not offer zero-copy"),
    (on.check_zero_copy, {"xdp_features": None}, True, "ice has it"),
    (on.check_zero_copy, {"xdp_features": None, "driver": "new"}, None, "unknown"),
    (on.check_queues, {}, True, "8 combined of 64"),
    (on.check_queues, {"channels": (2, 1, 0)}, True, "2 receive of 16, 1 transmit of 16"),
    (on.check_queues, {"channels": None}, True, "64 receive, 64 transmit"),
    (on.check_mtu, {}, True, "1500, native XDP takes 3498 in one buffer as a rule"),
    (on.check_mtu, {"link": replace(CARD.link, mtu=9000)}, False, "9000, native XDP takes 3498"),
    (on.check_attached, {}, True, "no XDP program"),
    (on.check_attached, {"xdp_mode": 1, "xdp_prog_id": 1 << 31}, False,
     f"a program is attached (id {1 << 31}), native")])
def test_interface_checks(check: Callable[[on.Interface], Answer],
                          change: dict[str, Any], ok: bool | None, reason: str) -> None:
    found, told = check(replace(CARD, **change))
    assert found is ok and reason in told


def test_no_such_interface() -> None:
    with pytest.raises(PortError, match="interface eth77: not found"):
        features.collect("eth77")


ATTACH = """
import ctypes, struct, sys
from control.features import collect
from dataplane import netlink as nl

def bpf(command, request):
    return ctypes.CDLL(None).syscall(321, command, request.ljust(144, b"\\0"), 144)

code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xb7, 0, 0, 2, 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
program = bpf(5, struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)))
assert program > 0
with nl.Netlink() as net:
    xdp = nl.attr(1, struct.pack("=i", program)) + nl.attr(3, 4)        # native mode
    net.request(nl.RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, int(sys.argv[1]), 0, 0)
                + nl.attr(43 | 0x8000, xdp))
print(*[r for r in collect("eth0") if r.name == "xdp_free"])
"""


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0 or platform.machine() != "x86_64",
                    reason="needs root (network namespaces) on x86_64")
def test_veth() -> None:
    name = f"xdpu-t{os.getpid()}-features"

    def ip(words: str) -> str:
        return subprocess.run(["ip", "-n", name, *words.split()], check=True, text=True,
                              capture_output=True).stdout

    def inside(code: str) -> subprocess.CompletedProcess[str]:
        index = json.loads(ip("-j link show eth0"))[0]["ifindex"]
        return subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", code, str(index)],
                              cwd=ROOT, capture_output=True, text=True)

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ip("link add eth0 numrxqueues 4 numtxqueues 4 type veth peer name p0")
        ip("link set eth0 up")
        shown = inside("from control.features import *; print(to_text(collect('eth0')[-9:]))")
        told = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.stdout.splitlines()}
        assert told["driver"] == "yes veth", shown.stderr
        assert told["carrier"] == "no no carrier"
        assert told["queues"] == "yes 4 receive of 4, 4 transmit of 4"
        assert told["native_xdp"].startswith("yes native XDP") and told["xdp_free"][:3] == "yes"
        assert told["zero_copy"] == "no veth does not offer zero-copy"
        ip(f"link set p0 mtu {on.MTU_LIMITS['veth'] + 1}")
        assert "Numerical result out of range" in inside(ATTACH).stderr
        ip(f"link set p0 mtu {on.MTU_LIMITS['veth']}")
        attached = inside(ATTACH)
        assert "), native (ip link set dev eth0 xdp off)" in attached.stdout, attached.stderr
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
