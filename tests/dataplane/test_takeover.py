"""What is found again after a takeover is exactly what was there, however it ended."""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dataplane import hostwrite
from dataplane import netlink as nl
from tests.nets import entered

pytestmark = [pytest.mark.netns,
              pytest.mark.skipif(os.geteuid() != 0, reason="needs root (network namespaces)")]
ROOT = Path(__file__).resolve().parents[2]
MAC = "02:00:00:00:0e:01"

HOLD = """
import sys, time
from pathlib import Path
from dataplane import keeper, rundir, takeover, tap_device
run = rundir.create("t", Path({root!r}))
guard = keeper.Keeper(run.path) if {keeper} else None
taps = [tap_device.open_tap(f"xdpu{{n}}") for n, _ in enumerate({ifaces!r})]
takes = [takeover.Takeover(i, t.name, run.path) for i, t in zip({ifaces!r}, taps)]
for take in takes:
    take.apply()
print("taken", guard.pid if guard else 0, *[note for t in takes for note in t.notes], flush=True)
try:
    word = sys.stdin.readline().strip()
    if word == "raise":
        raise RuntimeError("in the middle")
finally:
    if word != "leave":
        for take in reversed(takes):
            take.restore()
        if guard:
            guard.close()
"""


@dataclass
class Net:
    """A namespace with eth0 (configured by each test) and its other end p0 in a second one."""

    name: str
    folder: Path
    keeper_pid: int = 0
    notes: str = ""

    @property
    def far(self) -> str:
        return f"{self.name}-far"

    def ip(self, *words: str) -> str:
        return _run("ip", "-n", self.name, *" ".join(words).split())

    def python(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", code], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def hold(self, *ifaces: str, keeper: bool = False) -> subprocess.Popen[str]:
        process = self.python(HOLD.format(root=str(self.folder), keeper=keeper, ifaces=ifaces))
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("taken"):
            raise AssertionError(process.communicate()[1])
        self.keeper_pid, self.notes = int(line.split()[1]), line
        return process

    def repair(self) -> str:
        process = self.python("from pathlib import Path; from dataplane.takeover import repair; "
                              f"print(*repair(Path({str(self.folder)!r})), sep='\\n')")
        out, err = process.communicate()
        assert not err, err
        return out.strip()

    def state(self) -> dict[str, Any]:
        """All there is to see, in the kernel's order except where IPv6 has none."""
        addresses = json.loads(self.ip("-d -j addr"))
        for link in addresses:
            link.pop("stats64", None)
        six = sorted(self.ip("-6 -o route show table all").splitlines())
        sysctls = _run("ip", "netns", "exec", self.name, "sh", "-c",
                       "cd /proc/sys/net; grep -r . ipv4/conf ipv6/conf 2>/dev/null | sort")
        return {"addr": addresses, "route6": "\n".join(six),
                "route4": self.ip("-4 -o route show table all"),
                "neigh": sorted(self.ip("neigh show nud permanent").splitlines()),
                "proxy": self.ip("neigh show proxy"), "rule": self.ip("rule"), "sysctl": sysctls}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = Net(f"xdpu-t{os.getpid()}-{tmp_path.name[-12:]}", tmp_path / "run")
    try:
        for name in (made.name, made.far):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        made.ip(f"link add eth0 address {MAC} type veth peer name p0 netns {made.far}")
        made.ip("link set eth0 up")
        _run("ip", "-n", made.far, "link", "set", "p0", "up")
        yield made
    finally:
        for name in (made.name, made.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def plain(net: Net) -> None:
    net.ip("addr add 10.0.0.1/24 brd + dev eth0")
    net.ip("route add default via 10.0.0.254 dev eth0")
    settle(net)


def rich(net: Net) -> None:
    """One of everything."""
    for line in (
            "link add eth1 type veth peer name p1", "link set eth1 up", "link set p1 up",
            "link set eth0 mtu 1442 promisc on",
            "addr add 10.0.0.1/24 brd + dev eth0 label eth0:main",
            "addr add 10.0.0.3/24 dev eth0", "addr add 10.0.0.2/24 dev eth0 label eth0:two",
            "addr add 10.9.0.1 peer 10.9.0.2/32 dev eth0",
            "addr add 10.8.0.1/16 dev eth0 noprefixroute metric 77",
            "addr add 10.7.0.1/16 dev eth0 metric 55 scope link",
            "addr add 10.0.0.77/24 dev eth1",
            "addr add 172.16.0.1/24 dev eth0 valid_lft 3000 preferred_lft 2000",
            "addr add fd00::1/64 dev eth0 nodad", "addr add fd00::2/64 dev eth0",
            "addr add fd01::1/64 dev eth0 noprefixroute",
            "addr add fd02::1 peer fd02::2/128 dev eth0",
            "addr add fd03::1/64 dev eth1 nodad",
            "route add 192.168.9.9 dev eth0 scope link",
            "route add default via 192.168.9.9 dev eth0 onlink metric 9 mtu 1400 advmss 1300",
            "route add default via 10.0.0.254 dev eth0 proto dhcp src 10.0.0.3 metric 100",
            "route add default via 10.0.0.254 table 77 dev eth0",
            "route add 10.50.0.0/16 nexthop via 10.0.0.3 dev eth0 weight 2 "
            "nexthop via 10.0.0.78 dev eth1",
            "route add 10.51.0.0/16 nexthop via 10.0.0.8 dev eth0 weight 5 "
            "nexthop via 10.0.0.9 dev eth0",
            "route add 10.52.0.0/16 dev eth0 metric 5 rtt 30ms",
            "route append 10.52.0.0/16 dev eth1 metric 5",
            "route add 10.53.0.0/16 dev eth1 metric 5",
            "route append 10.53.0.0/16 dev eth0 metric 5",
            "route add 10.54.0.0/16 dev eth1 src 10.0.0.1",
            "route add 10.55.0.0/16 via inet6 fd00::99 dev eth0",
            "route add local 10.60.0.0/16 dev eth0 table local",
            "route add multicast 239.1.0.0/16 dev eth0", "route add unreachable 10.61.0.0/16",
            "nexthop add id 7 via 10.0.0.254 dev eth0", "route add 10.62.0.0/16 nhid 7",
            "route add default via fd00::ff dev eth0 metric 1024 pref high",
            "route add default via fe80::1 dev eth0 metric 2048",
            "route add fd50::/64 nexthop via fd00::5 dev eth0 nexthop via fd03::5 dev eth1",
            "route add fd51::/64 via fd00::5 dev eth0 expires 4000 table 77",
            "route add fd52::/64 dev eth0 src fd00::1",
            "rule add iif eth0 lookup 77",
            "neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev eth0",
            "neigh add fd00::ff lladdr 02:00:00:00:00:ff dev eth0 router",
            "neigh add proxy 10.0.0.200 dev eth0", "neigh add proxy fd00::200 dev eth0"):
        net.ip(line)
    _run("ip", "netns", "exec", net.name, "sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2",
         "net.ipv4.conf.eth0.arp_ignore=1", "net.ipv4.conf.eth0.proxy_arp=1",
         "net.ipv6.conf.eth0.accept_ra=0", "net.ipv6.conf.eth0.hop_limit=61")
    settle(net)


def settle(net: Net) -> None:
    """Until every link has its link-local address, and duplicate address detection has ended."""
    links = [name for name in ("eth0", "eth1", "p1") if f" {name}@" in net.ip("-o link")]
    for _ in range(50):
        if all("fe80::" in net.ip(f"-6 addr show dev {name}") for name in links) and (
                "tentative" not in net.ip("-6 addr")):
            return
        time.sleep(0.1)
    raise AssertionError("addresses stay tentative")


def test_addresses_are_usable_before_duplicates_are_looked_for_again(net: Net) -> None:
    """The kernel's part of adding one comes later, and must have come."""
    settle(net)
    _run("ip", "netns", "exec", net.name, "sysctl", "-qw",
         "net.ipv6.neigh.eth0.retrans_time_ms=300",
         "net.ipv6.conf.eth0.router_solicitation_delay=0")
    net.ip("addr add fd00::7/64 dev eth0")
    assert "tentative" in net.ip("-6 addr show dev eth0")
    with entered(net.name), nl.Netlink() as sock:
        hostwrite.await_addresses(sock, socket.if_nametoindex("eth0"))
    assert "tentative" not in net.ip("-6 addr show dev eth0")


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Finite lifetimes may be a few seconds shorter, all else is equal."""
    for state in (before, after):
        for link in state["addr"]:
            for address in link["addr_info"]:
                for key in ("valid_life_time", "preferred_life_time"):
                    if address[key] != 0xFFFFFFFF:
                        address[key] = round(address[key], -2)
        state["route6"] = re.sub(r"expires (39[89]\d|4000)sec", "expires 4000sec",
                                 str(state["route6"]))
    for part in before:
        was, now = (json.dumps(s[part], indent=1).replace("\\n", "\n") for s in (before, after))
        assert was == now, "\n".join(difflib.unified_diff(was.splitlines(), now.splitlines()))


@pytest.mark.parametrize("setup", [plain, rich], ids=["plain", "rich"])
@pytest.mark.parametrize("word", ["done", "raise"])
def test_restores_at_exit(net: Net, setup: Callable[[Net], None], word: str) -> None:
    setup(net)
    before = net.state()
    holder = net.hold("eth0")
    during = net.state()
    assert during != before
    _, err = holder.communicate(f"{word}\n")
    assert ("in the middle" in err) == (word == "raise"), err
    assert_same(before, net.state())
    assert not list(net.folder.glob("t/takeover-*"))


def test_tap_stands_in(net: Net) -> None:
    rich(net)
    before = {link["ifname"]: link for link in json.loads(net.ip("-d -j addr"))}
    routes = net.ip("-4 -o route show table all") + net.ip("-6 -o route show table all")
    holder = net.hold("eth0")
    now = {link["ifname"]: link for link in json.loads(net.ip("-d -j addr"))}
    assert now["eth0"]["addr_info"] == []
    assert now["xdpu0"]["address"] == MAC and now["xdpu0"]["mtu"] == 1442

    def seen(link: dict[str, Any]) -> list[tuple[Any, ...]]:
        return [(a["local"], a.get("address"), a["prefixlen"], a["scope"], a.get("broadcast"),
                 a.get("metric"), a.get("noprefixroute"), a.get("secondary"))
                for a in link["addr_info"]]

    assert seen(now["xdpu0"]) == seen(before["eth0"])
    assert {a["local"]: a["label"] for a in now["xdpu0"]["addr_info"] if "label" in a} == {
        a["local"]: a["label"].replace("eth0", "xdpu0") for a in before["eth0"]["addr_info"]
        if "label" in a}
    there = net.ip("-4 -o route show table all") + net.ip("-6 -o route show table all")

    def normal(text: str, *names: str) -> list[str]:
        for name in names:
            text = text.replace(f"dev {name}", "dev X")
        text = re.sub(r"expires \d+sec", "expires", text.replace("nhid 7 ", ""))
        kept = text.splitlines()
        return sorted(line for line in kept if not line.startswith("multicast ff00::/8"))

    was, is_now = normal(routes, "eth0"), normal(there, "xdpu0")
    assert was == is_now, "\n".join(difflib.unified_diff(was, is_now))
    assert "dev eth0" not in there.replace("multicast ff00::/8 dev eth0", "")
    assert "an ip rule names eth0" in net.notes
    holder.communicate("done\n")


TALK = """
import fcntl, select, socket, subprocess, sys, threading, os
from pathlib import Path
from dataplane import rundir, takeover, tap_device

def pump(tap, stop):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x300)
    wire.bind(("eth0", 3))
    while not stop.is_set():
        for source in select.select([wire, tap.fd], [], [], 0.05)[0]:
            if source is wire:
                frame, where = wire.recvfrom(65536)
                if where[2] != socket.PACKET_OUTGOING:
                    os.write(tap.fd, frame)
            else:
                wire.send(os.read(tap.fd, 65536))

def said(connection):
    connection.sendall(b"?")
    return connection.recv(10).decode()

run = rundir.create("talk", Path({root!r}))
connection = socket.create_connection(("10.0.0.254", 7), timeout=5)
answers = [said(connection)]
subprocess.run("tc qdisc add dev eth0 clsact", shell=True, check=True)
tap = tap_device.open_tap("xdpu0")
take = takeover.Takeover("eth0", tap.name, run.path)
stop = threading.Event()
thread = threading.Thread(target=pump, args=(tap, stop))
thread.start()
try:
    drop = "tc filter add dev eth0 ingress bpf direct-action bytecode '1,6 0 0 2,'"
    subprocess.run(drop, shell=True, check=True)
    take.apply()
    answers.append(said(connection))
    print(*answers, flush=True)
    sys.stdin.readline()
finally:
    take.restore()
    subprocess.run("tc qdisc del dev eth0 clsact", shell=True, check=True)
    stop.set()
    thread.join()
answers.append(said(connection))
print(*answers, flush=True)
"""


def test_host_answers_through_the_tap(net: Net) -> None:
    """ARP, neighbour discovery, ping and a TCP connection that lives through it all.

    A packet socket plays the data path; what it saw is dropped before the interface's own stack."""
    net.ip("addr add 10.0.0.1/24 dev eth0")
    net.ip("addr add fd00::1/64 dev eth0 nodad")
    for words in ("addr add 10.0.0.254/24 dev p0", "addr add fd00::ff/64 dev p0 nodad"):
        _run("ip", "-n", net.far, *words.split())
    _run("ip", "netns", "exec", net.far, "ethtool", "-K", "p0", "tx", "off")
    server = subprocess.Popen(["ip", "netns", "exec", net.far, sys.executable, "-c", """
import socket
listening = socket.create_server(("10.0.0.254", 7))
print("ready", flush=True)
connection, _ = listening.accept()
number = 0
while connection.recv(1):
    number += 1
    connection.sendall(str(number).encode())
"""], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline()
        settle(net)
        process = net.python(TALK.format(root=str(net.folder)))
        assert process.stdin is not None and process.stdout is not None
        line = process.stdout.readline()
        assert line == "1 2\n", process.communicate()[1]
        assert "dev eth0" not in net.ip("-4 route")
        _run("ip", "-n", net.far, "neigh", "flush", "all")
        for address in ("10.0.0.1", "fd00::1"):
            _run("ip", "netns", "exec", net.far, "ping", "-c2", "-i0.2", "-W2", address)
        out, err = process.communicate("done\n", timeout=20)
        assert out == "1 2 3\n", err
        _run("ip", "netns", "exec", net.far, "ping", "-c1", "-W2", "10.0.0.1")
    finally:
        server.kill()
        server.communicate()


def test_keeper_restores_after_kill(net: Net) -> None:
    rich(net)
    before = net.state()
    holder = net.hold("eth0", keeper=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 2
    while list(net.folder.glob("t/takeover-*")):
        assert time.monotonic() < deadline, "not restored within 2 s"
        time.sleep(0.02)
    assert_same(before, net.state())
    assert "put back as found" in _read_soon(net.folder / "t" / "keeper.log")


def test_repair_after_both_killed(net: Net) -> None:
    rich(net)
    before = net.state()
    holder = net.hold("eth0", keeper=True)
    os.kill(net.keeper_pid, signal.SIGKILL)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    time.sleep(0.3)
    assert list(net.folder.glob("t/takeover-*"))
    assert net.repair().startswith("interface eth0: put back as found")
    assert_same(before, net.state())
    assert net.repair() == ""


def test_two_interfaces(net: Net) -> None:
    rich(net)
    before = net.state()
    holder = net.hold("eth0", "eth1", keeper=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 2
    while list(net.folder.glob("t/takeover-*")):
        assert time.monotonic() < deadline, "not restored within 2 s"
        time.sleep(0.02)
    while any(a.get("tentative") for link in net.state()["addr"] for a in link["addr_info"]):
        assert time.monotonic() < deadline + 5, "an address is still being looked for elsewhere"
        time.sleep(0.1)
    assert_same(before, net.state())


def test_interrupted_restore_is_finished(net: Net) -> None:
    """The journal is right at every point: restore from a state half put back."""
    rich(net)
    before = net.state()
    holder = net.hold("eth0")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    net.ip("addr add 10.0.0.2/24 dev eth0")         # not the first: order has to be mended
    assert net.repair()
    assert_same(before, net.state())


def test_other_namespace_is_left_alone(net: Net) -> None:
    plain(net)
    holder = net.hold("eth0")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    done = subprocess.run(
        ["ip", "netns", "exec", net.far, sys.executable, "-c",
         "from pathlib import Path; from dataplane.takeover import repair; "
         f"print(repair(Path({str(net.folder)!r})))"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert list(net.folder.glob("t/takeover-*"))
    assert net.repair()


def test_live_owner_is_left_alone(net: Net) -> None:
    plain(net)
    holder = net.hold("eth0")
    assert net.repair() == ""
    second = net.python(f"""
from pathlib import Path
from dataplane import rundir, takeover, tap_device
run = rundir.create("second", Path({str(net.folder)!r}))
with tap_device.open_tap("xdpu9") as tap:
    takeover.Takeover("eth0", tap.name, run.path).apply()
""")
    assert "interface eth0: already taken over by run t, pid " in second.communicate()[1]
    holder.communicate("done\n")


@pytest.mark.parametrize(("iface", "down", "message"), [
    ("eth7", False, "interface eth7: not found (there are eth0 in this network namespace)"),
    ("eth0", True, "interface eth0: is down (ip link set eth0 up)")])
def test_refuses(net: Net, iface: str, down: bool, message: str) -> None:
    if down:
        net.ip("link set eth0 down")
    process = net.python(f"from dataplane.hostnet import snapshot; snapshot({iface!r})")
    assert message in process.communicate()[1]


def test_failed_apply_changes_nothing(net: Net) -> None:
    rich(net)
    before = net.state()
    process = net.python(f"""
from pathlib import Path
from dataplane import hostwrite, rundir, takeover, tap_device
run = rundir.create("t", Path({str(net.folder)!r}))
def fail(net, state):
    hostwrite_strip(net, state)
    raise OSError(5, "the disk is on fire")
hostwrite_strip, hostwrite.strip = hostwrite.strip, fail
takeover.Takeover("eth0", tap_device.open_tap("xdpu0").name, run.path).apply()
""")
    assert "interface eth0: cannot be taken over, the disk is on fire" in process.communicate()[1]
    assert_same(before, net.state())


def test_persistent_tap_is_left_as_found(net: Net) -> None:
    plain(net)
    net.ip("tuntap add dev xdpu0 mode tap multi_queue")
    net.ip("link set xdpu0 address 02:00:00:00:00:77 mtu 1300 up")
    net.ip("link set xdpu0 down")           # has its qdisc now, which stays
    before = net.state()
    holder = net.hold("eth0")
    holder.communicate("done\n")
    assert_same(before, net.state())


def test_expired_address_stays_away(net: Net) -> None:
    plain(net)
    net.ip("addr add 10.4.0.1/24 dev eth0 valid_lft 3 preferred_lft 3")
    net.ip("addr add fd04::1/64 dev eth0 valid_lft 3 preferred_lft 3 nodad")
    holder = net.hold("eth0")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    time.sleep(3.2)
    assert net.repair().startswith("interface eth0: put back")
    shown = net.ip("addr show dev eth0")
    assert "10.0.0.1/24" in shown and "10.4.0.1" not in shown and "fd04::1" not in shown
    assert "10.4.0.0" not in net.ip("route")


def test_renewed_lease_counts(net: Net) -> None:
    """A DHCP client that renewed on the TAP meanwhile."""
    net.ip("addr add 10.4.0.1/24 dev eth0 valid_lft 60 preferred_lft 60")
    holder = net.hold("eth0")
    net.ip("addr change 10.4.0.1/24 dev xdpu0 valid_lft 9000 preferred_lft 9000")
    holder.communicate("done\n")
    address = json.loads(net.ip("-j addr show dev eth0"))[0]["addr_info"][0]
    assert address["local"] == "10.4.0.1" and address["valid_life_time"] > 8900


ADVERTISE = """
import select, socket, struct, sys, time
index = socket.if_nametoindex("p0")
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
for option, value in ((18, 255), (17, index), (16, 255)):
    s.setsockopt(41, option, value)
s.setsockopt(41, 20, socket.inet_pton(10, "ff02::2") + struct.pack("=I", index))
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xc0, 600, 300, 0, socket.inet_pton(10, "fd77::"))
advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 900, 0, 0) + prefix
while True:
    s.sendto(advert, ("ff02::1", 0, 0, index))
    if {answers}:
        while s.recv(2000)[0] != 133:
            pass
    else:
        break
"""


@pytest.mark.parametrize("answers", [True, False], ids=["router answers", "router is silent"])
def test_routers_are_listened_to_again(net: Net, answers: bool) -> None:
    def advertise(answers: bool) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["ip", "netns", "exec", net.far, sys.executable, "-c",
                                 ADVERTISE.format(answers=answers)])

    def until(word: str, command: str) -> str:
        for _ in range(60):
            if word in (shown := net.ip(command)):
                return shown
            time.sleep(0.1)
        raise AssertionError(f"no {word!r} in {command}: {shown}")

    settle(net)
    while "tentative" in _run("ip", "-n", net.far, "-6", "addr"):
        time.sleep(0.1)
    router = advertise(answers)
    try:
        until("fd77::", "-6 addr show dev eth0")
        before = until("proto ra", "-6 route")
        settle(net)
        holder = net.hold("eth0")
        assert "default" in net.ip("-6 route show dev xdpu0")
        time.sleep(2)
        holder.communicate("done\n")
        shown = net.ip("-6 route")
        if answers:
            def timeless(text: str) -> list[str]:
                return sorted(re.sub(r"expires \d+sec", "", text).splitlines())
            assert timeless(shown) == timeless(before)
        else:
            assert "default via fe80" in shown and "metric 1025" in shown
            advertise(False).wait()
            until("proto ra metric 1024", "-6 route")
        lifetime = json.loads(net.ip("-6 -j addr show dev eth0 scope global"))
        assert lifetime[0]["addr_info"][0]["valid_life_time"] >= 598    # renewed
    finally:
        router.kill()
        router.wait()


def test_unreadable_journal_is_told(net: Net) -> None:
    (net.folder / "t").mkdir(parents=True)
    (net.folder / "t" / "takeover-3.json").write_text("{")
    assert "takeover-3.json: cannot be read" in net.repair()


def test_gone_interface(net: Net) -> None:
    plain(net)
    holder = net.hold("eth0")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    net.ip("link del eth0")
    assert net.repair() == "interface eth0: gone, nothing to mend"


def _read_soon(path: Path) -> str:
    for _ in range(100):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.02)
    raise AssertionError(f"no {path}")
