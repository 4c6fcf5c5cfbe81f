from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane import rundir
from dataplane.rundir import Owner, RunDir
from xdp_runtime.errors import ConfigError, PortError


def dead_owner() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner(process.pid, 1, rundir.boot_id())


def make_dead(root: Path, name: str) -> RunDir:
    run = rundir.create(name, root)
    (run.path / "pid").write_text(f"{dead_owner()}\n")
    return run


@pytest.mark.parametrize(("uid", "environment", "expected"), [
    (0, {}, "/run/xdpu"), (0, {"XDPU_RUNDIR": "/x"}, "/x"), (5, {"XDPU_RUNDIR": "/x"}, "/x"),
    (5, {"XDG_RUNTIME_DIR": "/run/user/5"}, "/run/user/5/xdpu"), (5, {}, "/tmp/xdpu-5")])
def test_run_root(monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str],
                  expected: str) -> None:
    for name in ("XDPU_RUNDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert rundir.run_root() == Path(expected)


def test_create_and_remove(tmp_path: Path) -> None:
    run = rundir.create("lb-1.a", tmp_path / "deep" / "root")
    assert run.owner() == Owner.current() and run.owner_alive() and run.name == "lb-1.a"
    assert [r.path for r in rundir.runs(tmp_path / "deep" / "root")] == [run.path]
    run.remove()
    run.remove()
    assert not run.path.exists() and not run.owner_alive()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "-x", "a b", "x" * 65])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="choose another --name"):
        rundir.create(name, tmp_path)


def test_one_live_run_a_name(tmp_path: Path) -> None:
    rundir.create("a", tmp_path)
    with pytest.raises(ConfigError, match=f"run a: is already running as pid {os.getpid()}"):
        rundir.create("a", tmp_path)


def test_dead_run_is_replaced(tmp_path: Path) -> None:
    old = make_dead(tmp_path, "a")
    (old.path / "counters").write_text("old")
    new = rundir.create("a", tmp_path)
    assert new.owner_alive() and not (new.path / "counters").exists()


def test_journal_is_never_removed(tmp_path: Path) -> None:
    run = make_dead(tmp_path, "a")
    (run.path / "takeover-3.json").write_text("{}")
    with pytest.raises(PortError, match="run a: a dead run left an interface taken over"):
        rundir.create("a", tmp_path)
    assert rundir.clean(tmp_path) == []
    assert run.journals() == [run.path / "takeover-3.json"]


def test_clean(tmp_path: Path) -> None:
    alive = rundir.create("alive", tmp_path)
    make_dead(tmp_path, "dead")
    (tmp_path / "foreign").mkdir()              # no pid file: not ours to remove
    assert rundir.clean(tmp_path) == ["dead"]
    assert alive.path.exists() and (tmp_path / "foreign").exists()
    assert rundir.clean(tmp_path / "none") == []


def test_owner_is_told_from_a_later_process() -> None:
    me = Owner.current()
    assert me.alive() and Owner.parse(str(me)) == me
    assert not Owner(me.pid, me.start_ticks + 1, me.boot_id).alive()
    assert not Owner(me.pid, me.start_ticks, "another boot").alive()
    assert not dead_owner().alive()
    assert Owner.parse("12 x y") is None and Owner.parse("") is None


def test_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()                       # ends with the process, which nobody waited for
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert rundir.start_ticks(process.pid) is None
    process.communicate()


def test_start_ticks_of_odd_command_names(tmp_path: Path) -> None:
    tool = tmp_path / "a) R 1 (b"
    tool.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(tool), "9"])
    try:
        ticks, own = rundir.start_ticks(process.pid), rundir.start_ticks(os.getpid())
        assert ticks is not None and own is not None and ticks >= own
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("code", "why"), [
    (errno.ENOSPC, "no space left on the device (free some"), (errno.EROFS, "not writable (run as"),
    (errno.EACCES, "not writable"), (errno.EIO, "Input/output error")])
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, why: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PortError) as caught:
        rundir.write_atomic(tmp_path / "pid", "")
    assert str(caught.value).startswith(f"run directory {tmp_path}/pid: ") and why in str(
        caught.value)
    with pytest.raises(PortError):
        rundir.create("a", tmp_path)


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    rundir.write_atomic(path, "old")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(PortError, match="no space left"):
        rundir.write_atomic(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_foreign_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PortError, match="belongs to somebody else"):
        rundir.create("a", tmp_path / "link")
