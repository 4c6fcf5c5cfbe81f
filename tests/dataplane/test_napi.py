"""Interrupts put off for busy polling: found again as they were, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import napi, takeover
from tests.nets import End, VethPair, entered, in_ns
from xdp_runtime.errors import PortError

pytestmark = pytest.mark.netns
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("napi_defer_hard_irqs", "gro_flush_timeout")


def settings(end: End, name: str = "") -> list[int]:
    """As another process sees them; `ip netns exec` mounts sysfs anew."""
    paths = [f"/sys/class/net/{name or end.ifname}/{one}" for one in NAMES]
    return [int(text) for text in in_ns(end.ns, "cat", *paths).stdout.split()]


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[End]:
    monkeypatch.setenv("XDPU_RUNDIR", str(tmp_path))
    with VethPair() as pair:
        in_ns(pair.a.ns, "sh", "-c", f"echo 7 > /sys/class/net/{pair.a.ifname}/{NAMES[0]}")
        assert settings(pair.a) == [7, 0]
        yield pair.a


def test_put_off_and_restored(end: End, tmp_path: Path) -> None:
    with entered(end.ns):
        deferral = napi.defer(end.ifname, end.ifindex)
        assert deferral.said == "napi_defer_hard_irqs 2 (was 7), gro_flush_timeout 200000 (was 0)"
        assert settings(end) == [2, 200_000]
        assert napi.repair() == [] and settings(end) == [2, 200_000]  # its owner lives
        with pytest.raises(PortError, match="another run has put off its interrupts"):
            napi.defer(end.ifname, end.ifindex)
        deferral.restore()
        assert settings(end) == [7, 0] and not list(tmp_path.iterdir())
        deferral.restore()


def _die_with_interrupts_put_off(end: End) -> None:
    script = ("import os, sys; from dataplane import napi\n"
              f"napi.defer(sys.argv[1], {end.ifindex}); os.kill(os.getpid(), 9)")
    done = subprocess.run(["ip", "netns", "exec", end.ns, sys.executable, "-c", script,
                           end.ifname], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert settings(end) == [2, 200_000]


def test_the_next_run_mends(end: End, tmp_path: Path) -> None:
    _die_with_interrupts_put_off(end)
    assert takeover.repair(tmp_path) == []  # another namespace: not ours to mend
    with entered(end.ns):
        assert takeover.repair(tmp_path) == [
            f"interface {end.ifname}: interrupts as found before they were put off"]
    assert settings(end) == [7, 0] and not list(tmp_path.iterdir())


def test_a_renamed_interface_is_found_by_its_number(end: End, tmp_path: Path) -> None:
    _die_with_interrupts_put_off(end)
    in_ns(end.ns, "ip", "link", "set", end.ifname, "name", "other0")
    with entered(end.ns):
        assert napi.repair() == ["interface other0: interrupts as found before they were put off"]
    assert settings(end, "other0") == [7, 0] and not list(tmp_path.iterdir())


def test_a_removed_interface_needs_nothing(end: End, tmp_path: Path) -> None:
    _die_with_interrupts_put_off(end)
    in_ns(end.ns, "ip", "link", "del", end.ifname)
    with entered(end.ns):
        assert napi.repair() == [f"interface {end.ifname}: gone, its interrupts need no mending"]
    assert not list(tmp_path.iterdir())


def test_a_damaged_journal_is_left_alone(end: End, tmp_path: Path) -> None:
    (tmp_path / "napi-1-2.json").write_text("{")
    with entered(end.ns):
        said, = napi.repair()
        assert "cannot be read" in said and "then remove the file" in said
    assert os.listdir(tmp_path) == ["napi-1-2.json"]
