"""xdpu run --filter map:NAME: what the map says is what comes in, from the change on."""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from control import cli
from dataplane import rundir
from tests.afxdp.network import marks
from tests.control.run_xdpu import EXAMPLES, Run, until, xdpu
from tests.control.test_setup import Setup, folder
from tests.control.test_setup import run as run_as_nobody
from tests.nets import VethPair, entered
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.map import Map

pytestmark = marks()
__all__ = ["folder"]
OBJECT = str(Path(__file__).parents[1] / "afxdp" / "objects" / "filter_maps.o")
PORT = 701


class Host:
    """A socket behind the run's interface, and one at the far end that sends to it."""

    def __init__(self, pair: VethPair, undo: ExitStack) -> None:
        self.pair = pair
        with entered(pair.b.ns):
            self.inside = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.inside.bind((pair.b.ip4, PORT))
        with entered(pair.a.ns):
            self.outside = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.outside.connect((pair.b.ip4, PORT))
        self._number = 0

    def gets(self, timeout_s: float = 20.0) -> bool:
        """Does it get a packet that is sent now?"""
        self._number += 1
        self.outside.send(struct.pack("!I", self._number))
        self.inside.settimeout(timeout_s)
        try:
            while struct.unpack("!I", self.inside.recv(100))[0] != self._number:
                pass
        except TimeoutError:
            return False
        return True

    def loses(self, run: Run) -> bool:
        """Is a packet that is sent now taken by the run, which drops it?"""
        before = run.total().get("drop", 0)
        self._number += 1
        self.outside.send(struct.pack("!I", self._number))
        until(lambda: run.total().get("drop", 0) > before, "a packet that is dropped")
        return not self.gets(0.05)


@contextmanager
def live(*words: str) -> Iterator[tuple[Run, Host, VethPair]]:
    with VethPair(subnet=79, offload=True) as pair, ExitStack() as undo:
        host = Host(pair, undo)
        until(lambda: host.gets(0.1), "a packet without a run")
        with Run(pair.b.ns, OBJECT, "--iface", pair.b.ifname, "-i", "0.1", "--name", "asked",
                 *words) as run:
            run.wait_for("start")
            yield run, host, pair


def change(*words: str) -> None:
    done = xdpu("map", *words)
    assert done.returncode == 0, done.stderr


def source(pair: VethPair) -> list[str]:
    return ["hex", *(f"{byte:02x}" for byte in socket.inet_aton(pair.a.ip4))]


def test_a_change_is_known_when_the_command_is_done() -> None:
    with live("--filter", "udp and map:plain:src") as (run, host, pair):
        assert "only udp and map:plain:src, the rest stays with the stack; plain: src" \
            in run.wait_for("start")["modes"][pair.b.ifname]
        for _ in range(3):
            assert host.gets(), "no entry: the stack's"
            change("update", "name", "plain", "key", *source(pair), "value", *"10000000")
            assert host.loses(run), "taken, and dropped"
            change("delete", "name", "plain", "key", *source(pair))
        assert host.gets()
        assert run.end() == 0
        assert run.wait_for("summary")["total"]["drop"] == 6


def test_entries_given_at_the_start() -> None:
    with live("--filter", "map:Ports:dport", "--set-map", f"Ports={PORT}:5") as (run, host, _):
        assert host.loses(run)
        change("update", "name", "Ports", "key", *number(PORT), "value", *number(0))
        assert host.gets(), "zero is no entry of an array"
        assert run.end() == 0


def number(value: int) -> list[str]:
    return ["hex", *(f"{byte:02x}" for byte in struct.pack("=I", value))]


def test_whoever_writes_the_map() -> None:
    """Another process that only maps its memory, and the program itself: known a moment later."""
    with live("--filter", "map:Ports:dport") as (run, host, _), \
            Map.open(rundir.run_root() / "asked" / "maps" / "Ports") as ports:
        compile_operations(ports)
        ports.update(struct.pack("=I", PORT), struct.pack("=I", 1))
        until(lambda: not host.gets(0.1), "packets are taken")
        assert host.loses(run)
        ports.update(struct.pack("=I", 700), struct.pack("=I", 77))
        ports.update(struct.pack("=I", PORT), struct.pack("=I", 0))
        until(lambda: host.gets(0.1), "the stack has them back")
        assert run.end() == 0


def test_a_port_that_comes_later_and_another_program() -> None:
    with live("--filter", "map:plain:src") as (run, host, pair), \
            VethPair(ns_b=pair.b.ns, subnet=80, offload=True) as more, ExitStack() as undo:
        change("update", "name", "plain", "key", *source(pair), "value", *"10000000")
        change("update", "name", "plain", "key", *source(more), "value", *"10000000")
        second = Host(more, undo)
        until(lambda: second.gets(0.1), "a packet without a run")
        assert xdpu("port", "add", "asked", more.b.ifname).returncode == 0
        until(lambda: not second.gets(0.1), "its set is filled, too")
        assert second.loses(run)
        assert xdpu("port", "remove", "asked", more.b.ifname).returncode == 0
        assert second.gets()
        refused = xdpu("replace", "asked", str(EXAMPLES / "drop.o"))
        assert refused.returncode == 2
        assert "--filter map:plain:src: drop.o has no map 'plain'" in refused.stderr
        assert xdpu("replace", "asked", OBJECT).returncode == 0
        assert host.loses(run)
        change("delete", "name", "plain", "key", *source(pair))
        assert host.gets()
        assert run.end() == 0


@pytest.mark.parametrize("words, code, said", [
    (("map:plain",), 2, "its key, 4 bytes, does not say what of a packet it is"),
    (("map:nix",), 2, "has no map 'nix'"),
    (("map:plain:quic",), 2, "has a field quic"),
])
def test_refusals(words: tuple[str, ...], code: int, said: str,
                  capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", OBJECT, "--iface", "lo", "--filter", *words]) == code
    assert said in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
def test_without_privileges(folder: Path) -> None:
    """The run of an ordinary user fills the set that the set-up process made."""
    with VethPair(subnet=81, offload=True) as pair, ExitStack() as undo:
        host = Host(pair, undo)
        until(lambda: host.gets(0.1), "a packet without a run")
        copy = folder / "filter_maps.o"
        shutil.copy(OBJECT, copy)
        with Setup(pair, folder), run_as_nobody(
                pair, folder, "drop", "--no-stack", "--filter", "map:plain:src", "--set-map",
                f"plain=hex:{socket.inet_aton(pair.a.ip4).hex()}:1", obj=str(copy)) as run:
            run.wait_for("start")
            assert host.loses(run)
            assert run.end() == 0
        assert host.gets(), "the host's again"
