"""`make demo`: demo.o, compiled by clang for the kernel, handles real packets in user space.

    client 10.99.0.2 --- uplink 10.99.0.1 [node] port1 --- 10.99.1.1 server1
                                                 port2 --- 10.99.1.2 server2

Four network namespaces joined by veth pairs, and `xdpu run demo.o` on the node's three interfaces.
Programs that know nothing of all this, curl, ping and an HTTP server, then see each verdict: PASS,
TX, DROP and REDIRECT.  All of it is gone at the end, and the node is as it was before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
COMMANDS = {"ip": "iproute2", "ethtool": "ethtool", "ping": "iputils-ping", "curl": "curl",
            "setpriv": "util-linux"}
NODE_IP, CLIENT_IP, SERVER1_IP, SERVER2_IP = "10.99.0.1", "10.99.0.2", "10.99.1.1", "10.99.1.2"
PORT, BLOCKED_PORT = 8080, 8081     # the latter by demo.o
PINGS = 5
START_TIMEOUT_S = 30
VERDICTS = ("pass", "tx", "drop", "redirect")


class Failed(Exception):
    """A step did not do what it should, in one sentence."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with ExitStack() as undo:
            demo(undo)
    except KeyboardInterrupt:
        print("demo: interrupted, everything is taken down", file=sys.stderr)
        return 130
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def demo(undo: ExitStack) -> None:
    started_s = time.monotonic()
    check_machine()
    folder = Path(tempfile.mkdtemp(prefix="xdpu-demo-"))
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    say("namespaces client, node, server1 and server2; HTTP servers in node and server2")
    net = Network(undo)
    net.build()
    serve(net, "node", folder, PORT, BLOCKED_PORT)
    serve(net, "server2", folder, PORT)
    before = net.state("node")
    expect(fetch(net, "client", NODE_IP, BLOCKED_PORT) == "node",
           f"port {BLOCKED_PORT} does not answer before the run")
    expect(fetch(net, "server1", SERVER2_IP, PORT) is None, "the node forwards before the run")

    run = Run(net, folder, undo)
    run.start()
    say(f"{run.command}\n    running after {run.ready_s:.2f} s")
    for step in (show_pass, show_tx, show_drop, show_redirect):
        step(net, run)
    summary = run.end()
    say("ended by Ctrl-C; all packets of the run: " + ", ".join(
        f"{summary[name]} {name}" for name in ("rx_packets", *VERDICTS, "aborted")))
    expect(not summary["aborted"], f"{summary['aborted']} packets were aborted")

    after = net.state("node")
    changed = [name for name in before if before[name] != after[name]]
    expect(not changed, f"not as found before the run: {', '.join(changed)}")
    expect(fetch(net, "client", NODE_IP, BLOCKED_PORT) == "node",
           f"port {BLOCKED_PORT} does not answer after the run")
    say(f"links, addresses, routes and XDP are as before, port {BLOCKED_PORT} answers again")
    undo.close()
    print(f"\ndone in {time.monotonic() - started_s:.1f} s; nothing is left behind")


# ---- the four verdicts ---------------------------------------------------------------------------

def show_pass(net: Network, run: Run) -> None:
    page, counted = run.during(lambda: fetch(net, "client", NODE_IP, PORT))
    expect(page == "node", "curl in client got no page from the node")
    expect(counted["pass"] > 0, "the page went another way")
    report("PASS", f"curl gets a page from the HTTP server in node: {counted['pass']} packets to "
           "the stack, which answers by the interface itself", counted)


def show_tx(net: Network, run: Run) -> None:
    by_kernel = net.echos_answered("node")
    done, counted = run.during(lambda: net.run(
        "client", "ping", "-q", "-c", str(PINGS), "-i", "0.1", "-W", "1", NODE_IP))
    expect(f"{PINGS} received" in done.stdout, f"ping: {done.stdout.strip() or done.stderr}")
    expect(counted["tx"] >= PINGS, f"{PINGS} pings were answered, by {counted['tx']} XDP_TX only")
    by_kernel = net.echos_answered("node") - by_kernel
    expect(by_kernel == 0, f"the node's kernel answered {by_kernel} pings")
    times = re.search(r"= [\d.]+/([\d.]+)/", done.stdout)
    report("TX", f"ping: {PINGS} of {PINGS} answered, {float(times[1]) if times else 0:.2f} ms on "
           "average; the node's kernel saw none", counted)


def show_drop(net: Network, run: Run) -> None:
    page, counted = run.during(lambda: fetch(net, "client", NODE_IP, BLOCKED_PORT))
    expect(page is None, f"port {BLOCKED_PORT} answers, though demo.o blocks it")
    expect(counted["drop"] > 0, f"port {BLOCKED_PORT} does not answer, but nothing was dropped")
    report("DROP", f"curl on port {BLOCKED_PORT} times out, though a server listens", counted)


def show_redirect(net: Network, run: Run) -> None:
    page, counted = run.during(lambda: fetch(net, "server1", SERVER2_IP, PORT))
    expect(page == "server2", "curl in server1 got no page from server2")
    expect(counted["redirect"] > 0, "server1 reaches server2, but nothing was redirected")
    report("REDIRECT", "server1 gets a page from server2, through port1 and port2", counted)


# ---- the network ---------------------------------------------------------------------------------

class Network:
    """Namespaces xdpu-demo<pid>-<place>; whoever is in them is a process of ours."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo
        self._prefix = f"xdpu-demo{os.getpid()}-"

    def name(self, place: str) -> str:
        return self._prefix + place

    def build(self) -> None:
        remove_leftovers()
        for place in ("client", "node", "server1", "server2"):
            with undisturbed():  # else it may be made by a child that nobody waits for any more
                done = subprocess.run(["ip", "netns", "add", self.name(place)],
                                      capture_output=True, text=True, check=False)
                self._undo.callback(subprocess.run, ["ip", "netns", "del", self.name(place)],
                                    capture_output=True, check=False)
            expect(done.returncode == 0, f"no network namespace can be made: {done.stderr.strip()}")
            # IPv6 would only mix its own packets with those that are counted.
            self.must(place, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            self.must(place, "ip", "link", "set", "lo", "up")
        self.join("uplink", f"{NODE_IP}/24", "client", f"{CLIENT_IP}/24")
        self.join("port1", "", "server1", f"{SERVER1_IP}/24")
        self.join("port2", "", "server2", f"{SERVER2_IP}/24")

    def join(self, ifname: str, address: str, place: str, far_address: str) -> None:
        self.must("node", "ip", "link", "add", ifname, "type", "veth", "peer", "name", "eth0",
                  "netns", self.name(place))
        for where, link, ip in (("node", ifname, address), (place, "eth0", far_address)):
            if ip:
                self.must(where, "ip", "addr", "add", ip, "dev", link)
            self.must(where, "ip", "link", "set", link, "up")
        # No hardware will fill in a checksum that the sender leaves open, nor cut what is too long.
        self.must(place, "ethtool", "-K", "eth0", "tx", "off", "gso", "off")

    def command(self, place: str, *argv: str) -> list[str]:
        """The process ends with us, whatever happens to us."""
        return ["setpriv", "--pdeathsig", "TERM", "ip", "netns", "exec", self.name(place), *argv]

    def run(self, place: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(place, *argv), capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=20, check=False)

    def must(self, place: str, *argv: str) -> str:
        done = self.run(place, *argv)
        expect(done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def start(self, place: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(self.command(place, *argv), text=True,
                                   stdin=subprocess.DEVNULL, **options)
        self._undo.callback(end, process)
        return process

    def ifindex(self, ifname: str) -> int:
        return int(json.loads(self.must("node", "ip", "-j", "link", "show", ifname))[0]["ifindex"])

    def echos_answered(self, place: str) -> int:
        rows = [line.split() for line in self.must(place, "cat", "/proc/net/snmp").splitlines()
                if line.startswith("Icmp:")]
        return int(dict(zip(*rows, strict=True))["OutEchoReps"])

    def state(self, place: str) -> dict[str, Any]:
        """What a run touches and has to put back."""
        links = json.loads(self.must(place, "ip", "-j", "-d", "addr"))
        return {"links and addresses": [{k: v for k, v in link.items() if k != "xdp"}
                                        for link in links],
                "XDP": [link.get("xdp") for link in links],
                "routes": self.must(place, "ip", "route", "show", "table", "all")}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait until its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def remove_leftovers() -> None:
    """Of demos that were killed."""
    for path in Path("/run/netns").glob("xdpu-demo*"):
        pid = re.match(r"xdpu-demo(\d+)-", path.name)
        if pid and not Path(f"/proc/{pid[1]}").exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


def serve(net: Network, place: str, folder: Path, *ports: int) -> None:
    """HTTP servers whose page says where they are."""
    root = folder / place
    root.mkdir()
    (root / "index.html").write_text(place)
    for port in ports:
        net.start(place, sys.executable, "-m", "http.server", str(port), "--directory", str(root),
                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for port in ports:
        def answers(port: int = port) -> bool:
            return fetch(net, place, "127.0.0.1", port) == place
        wait(answers, 10, f"the HTTP server in {place} does not answer on port {port}")


def fetch(net: Network, place: str, address: str, port: int) -> str | None:
    """A page by curl; None if there is no answer."""
    done = net.run(place, "curl", "-s", "--noproxy", "*", "--connect-timeout", "1.5",
                   "--max-time", "5", f"http://{address}:{port}/")
    return done.stdout if done.returncode == 0 else None


# ---- the run -------------------------------------------------------------------------------------

class Run:
    """`xdpu run` in the node, and what it tells of itself: a JSON object a line."""

    def __init__(self, net: Network, folder: Path, undo: ExitStack) -> None:
        self._net, self._folder, self._undo = net, folder, undo
        self._records: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str]
        port1, port2 = net.ifindex("port1"), net.ifindex("port2")
        self._argv = ["run", "demo.o", "--iface", "uplink,port1,port2",
                      "--set-map", f"peer={port1}:{port2}", "--set-map", f"peer={port2}:{port1}"]
        self.command = " ".join(["xdpu", *self._argv])
        self.ready_s = 0.0

    def start(self) -> None:
        started_s = time.monotonic()
        with open(self._folder / "stderr", "w") as errors:
            self._process = self._net.start(
                "node", sys.executable, "-m", "control", *self._argv, "--interval", "0.2", "-j",
                cwd=HERE, stdout=subprocess.PIPE, stderr=errors,
                env=os.environ | {"XDPU_RUNDIR": str(self._folder / "run"),
                                  "PYTHONPATH": str(HERE.parent)})
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        wait(lambda: bool(self._records) or self._ended(), START_TIMEOUT_S,
             f"xdpu run does not start within {START_TIMEOUT_S} s")
        expect(not self._ended(), f"xdpu run ended by itself: {self._said()}")
        self.ready_s = time.monotonic() - started_s

    def during(self, action: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
        """What the action returns, and by how much each counter grew meanwhile."""
        before = self._fresh()
        result = action()
        after = self._fresh()
        return result, {name: after[name] - before[name] for name in after}

    def end(self) -> dict[str, int]:
        """The counters of its summary."""
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            raise Failed("xdpu run does not end on Ctrl-C") from None
        expect(code == 0, f"xdpu run ended with exit code {code}: {self._said()}")
        wait(lambda: self._records[-1].get("type") == "summary", 2, "xdpu run gave no summary")
        total: dict[str, int] = self._records[-1]["total"]
        return total

    def _fresh(self) -> dict[str, int]:
        """Counters of the second line from now on: all of it was read after this call."""
        wanted = len(self._records) + 2
        wait(lambda: len(self._records) >= wanted or self._ended(), 5,
             "xdpu run tells no counters any more")
        expect(not self._ended(), f"xdpu run ended by itself: {self._said()}")
        total: dict[str, int] = self._records[-1]["total"]
        return total

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            with suppress(ValueError):
                record = json.loads(line)
                if record.get("type") in ("status", "summary"):
                    self._records.append(record)

    def _ended(self) -> bool:
        return self._process.poll() is not None

    def _said(self) -> str:
        lines = (self._folder / "stderr").read_text().strip().splitlines()
        return lines[-1] if lines else "it says nothing"


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


# ---- saying and waiting --------------------------------------------------------------------------

def check_machine() -> None:
    missing = {package for name, package in COMMANDS.items() if shutil.which(name) is None}
    expect(not missing, f"commands are missing (apt-get install {' '.join(sorted(missing))})")
    expect(os.geteuid() == 0, "network namespaces need root (sudo make demo)")


def wait(done: Callable[[], bool], timeout_s: float, why_not: str) -> None:
    end_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end_s:
            raise Failed(why_not)
        time.sleep(0.02)


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Failed(otherwise)


def say(text: str) -> None:
    print(f"* {text}", flush=True)


def report(verdict: str, text: str, counted: dict[str, int]) -> None:
    counters = ", ".join(f"{name} +{counted[name]}" for name in VERDICTS if counted[name])
    print(f"* {verdict:<8}  {text}\n    {counters}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
