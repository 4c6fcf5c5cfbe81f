"""xdpu setup, and runs of nobody: who may, what they get, and that all is undone whoever dies."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.afxdp.network import marks
from tests.control.run_xdpu import ROOT, Run, command, environment, until
from tests.control.test_run_iface import echoes, example, state
from tests.nets import VethPair, in_ns

pytestmark = [*marks(), pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")]
NOBODY = pwd.getpwnam("nobody")
DROP = ["setpriv", f"--reuid={NOBODY.pw_uid}", f"--regid={NOBODY.pw_gid}", "--clear-groups",
        "--bounding-set=-all", "--inh-caps=-all"]


def _python() -> str:
    """One that nobody may start: ours may be in somebody's home.  "" if there is none."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        real = Path(path).resolve()
        if real.exists() and all(part.stat().st_mode & 0o001 for part in (real, *real.parents)):
            return path
    return ""


PYTHON = _python()
PATHS = os.pathsep.join([str(ROOT), *(path for path in sys.path if "site-packages" in path)])
pytestmark.append(pytest.mark.skipif(not PYTHON, reason="no Python that nobody may start"))


class Setup:
    """An `xdpu setup` in a namespace; the `with` block ends it."""

    def __init__(self, pair: VethPair, folder: Path, *more: str, user: str = "nobody",
                 iface: str = "") -> None:
        self.path, self.log = folder / "setup", folder / "setup.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", pair.b.ns, *command(
                    "setup", "--user", user, "--socket", str(self.path), "--iface",
                    iface or pair.b.ifname, *more)],
                stderr=log, stdout=log, env=environment(), cwd="/")
        until(lambda: (self.path.exists() and "sets up" in self.said) or self.process.poll(),
              "the set-up process")
        assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        return self.log.read_text()

    def __enter__(self) -> Setup:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For both: its parents let nobody through."""
    made = Path(f"/tmp/xdpu-test-{os.getpid()}-{tmp_path.name}")
    made.mkdir()
    (made / "run").mkdir()
    (made / "cache").mkdir()
    for path in (made / "run", made / "cache"):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    yield made
    shutil.rmtree(made)


def run(pair: VethPair, folder: Path, name: str, *more: str, iface: str = "",
        obj: str = "") -> Run:
    """As nobody."""
    own: dict[str, Any] = {"PYTHONPATH": PATHS, "XDPU_RUNDIR": str(folder / "run"),
                           "XDPU_CACHE": str(folder / "cache")}
    return Run(pair.b.ns, obj or example(name), "--iface", iface or pair.b.ifname, "-i", "0.1",
               "--setup-socket", str(folder / "setup"), *more, prefix=DROP, python=PYTHON, **own)


def quiet(pair: VethPair) -> dict[str, object]:
    until(lambda: "local fe80" in in_ns(pair.b.ns, "ip", "-6", "route", "show", "table", "local",
                                        "dev", pair.b.ifname).stdout, "a link-local address")
    return state(pair.b.ns, pair.b.ifname)


def test_a_run_without_privileges(folder: Path) -> None:
    """Through the TAP to the host and back; then XDP_TX and a filter; all by one set-up process."""
    with VethPair(subnet=71, queues=2) as pair:
        before = quiet(pair)
        with Setup(pair, folder) as setup:
            with run(pair, folder, "pass") as one:
                start = one.wait_for("start")
                assert f"set up by {setup.path}" in start["modes"][pair.b.ifname]
                status = Path(f"/proc/{start['pid']}/status").read_text()
                assert f"Uid:\t{NOBODY.pw_uid}" in status and "CapEff:\t0000000000000000" in status
                echoes(one, pair)
                assert one.end() == 0
            assert quiet(pair) == before
            with run(pair, folder, "icmp_echo", "--filter", "icmp", "--no-stack") as two:
                two.wait_for("start")
                assert pair.ping(3)
                assert two.end() == 0
                assert two.wait_for("summary")["total"]["tx"] >= 3
            assert quiet(pair) == before
        assert quiet(pair) == before and not setup.path.exists()
        assert setup.process.returncode == 0


def test_two_interfaces_share_a_umem(folder: Path) -> None:
    with VethPair(subnet=75) as one, VethPair(ns_b=one.b.ns, subnet=76) as two:
        both = f"{one.b.ifname},{two.b.ifname}"
        in_ns(two.a.ns, "ip", "addr", "add", "10.77.75.9/24", "dev", two.a.ifname)
        for near, far, address in ((one.a, two.a, "10.77.75.9"), (two.a, one.a, one.a.ip4)):
            in_ns(near.ns, "ip", "neigh", "replace", address, "lladdr", far.mac, "dev",
                  near.ifname, "nud", "permanent")
        in_ns(two.a.ns, "ip", "route", "replace", one.a.ip4, "dev", two.a.ifname, "src",
              "10.77.75.9")
        with Setup(one, folder, iface=both), run(
                one, folder, "redirect", "--promisc", "--no-stack", "--set-map",
                f"peer={one.b.ifindex}:{two.b.ifindex}", "--set-map",
                f"peer={two.b.ifindex}:{one.b.ifindex}", iface=both) as forward:
            assert "shared by 2 queues" in forward.wait_for("start")["modes"][two.b.ifname]
            done = in_ns(one.a.ns, "ping", "-q", "-c", "20", "-i", "0.01", "-W", "2", "10.77.75.9")
            assert " 20 received" in done.stdout
            assert forward.end() == 0
            total = forward.wait_for("summary")["total"]
            assert total["redirect"] >= 40 and total["redirect_full"] == 0


@pytest.mark.parametrize("victim", ["run", "setup"])
def test_kill_9(folder: Path, victim: str) -> None:
    with VethPair(subnet=72) as pair:
        before = quiet(pair)
        with Setup(pair, folder) as setup, run(pair, folder, "pass") as one:
            start = one.wait_for("start")
            echoes(one, pair)
            os.kill(start["pid"] if victim == "run" else _child(setup.process.pid), signal.SIGKILL)
            if victim == "setup":
                started_s = time.monotonic()
                assert one.finish() == 3 and time.monotonic() - started_s < 5
                assert "the set-up process ended" in one.errors
            until(lambda: state(pair.b.ns, pair.b.ifname) == before, "the interface as it was")
            until(pair.ping, "the host's answer")
            if victim == "run":
                with run(pair, folder, "pass") as again:
                    again.wait_for("start")
                    echoes(again, pair)
                    assert again.end() == 0
        assert quiet(pair) == before


def _child(pid: int) -> int:
    """`ip netns exec` becomes what it runs."""
    return pid


def test_what_is_refused(folder: Path) -> None:
    with VethPair(subnet=73) as pair:
        with run(pair, folder, "pass") as one:
            assert one.finish() == 3
            assert "set-up socket" in one.errors and "start xdpu setup as root" in one.errors
        with Setup(pair, folder, "--max-memory", "8M"):
            with run(pair, folder, "pass") as one:
                assert one.finish() == 5
                assert "16 MiB of packet memory and sets of keys are more than the 8 MiB" \
                    in one.errors
            with run(pair, folder, "pass", iface="lo") as other:
                assert other.finish() == 2
                assert "lo: the set-up process does not give it" in other.errors
            with run(pair, folder, "pass", "--ring-size", "256") as one:
                one.wait_for("start")
                assert one.end() == 0


def test_only_the_user_is_listened_to(folder: Path) -> None:
    with VethPair(subnet=74) as pair, Setup(pair, folder, user="daemon") as setup:
        with run(pair, folder, "pass") as one:
            assert one.finish() == 3 and "Permission denied" in one.errors
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(setup.path))
            sock.send(b"nonsense")
            assert sock.recv(100) == b""
        until(lambda: "makes no sense" in setup.said, "a word of it")
