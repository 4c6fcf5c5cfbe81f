"""What every test run shares: its own run directory, one cache of compiled code, no leftovers.

    pytest                                all of it, one test at a time
    pytest -m "not netns" -n auto         what touches no interface, on all cores
    pytest -m netns -n 2 --dist loadfile  what makes namespaces and interfaces: two files at a time

Two processes may test with interfaces at once: each names its namespaces and interfaces after
itself, and has a run directory of its own.  More than two keep each other from the cores.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

import pytest

from tests.nets import run, sweep

_NETNS_DIR = Path("/run/netns")
_PROCESS = re.compile(r"xdpu-\D*(\d+)-")      # xdpu-<pid>-..., xdpu-t<pid>-..., xdpu-demo<pid>-...
_run_dir: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    """Before a worker starts or a test module is read: both inherit the environment."""
    # Ignored under nohup, and in the background of a script: processes of tests would inherit it.
    for number, usual in ((signal.SIGHUP, signal.SIG_DFL),
                          (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    if worker := getattr(config, "workerinput", None):
        own = Path(os.environ["XDPU_RUNDIR"]) / worker["workerid"]
        own.mkdir()
        os.environ["XDPU_RUNDIR"] = str(own)
        return
    _run_dir.append(Path(tempfile.mkdtemp(prefix="xdpu-test-run-")))
    os.environ["XDPU_RUNDIR"] = str(_run_dir[0])
    # Kept from run to run: its entries are named by content, our sources included.
    os.environ.setdefault("XDPU_CACHE", str(config.rootpath / ".pytest_cache" / "compiled"))
    _remove_leftovers()


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    _remove_leftovers()
    for path in _run_dir:
        shutil.rmtree(path, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") and (refusal := netns_refusal()):
        pytest.skip(f"needs network namespaces: {refusal}")


@cache
def netns_refusal() -> str:
    """Why no namespace can be made here; empty if one can."""
    if os.geteuid():
        return "not root"
    if shutil.which("ip") is None:
        return "no ip command (apt install iproute2)"
    name = f"xdpu-{os.getpid()}-probe"
    done = run("ip", "netns", "add", name, check=False)
    if done.returncode:
        return done.stderr.strip()
    run("ip", "netns", "del", name, check=False)
    return ""


def _remove_leftovers() -> None:
    """The namespaces of test processes, of this run or an earlier one, that are gone."""
    if os.geteuid() or not _NETNS_DIR.is_dir():
        return
    sweep(again=True)
    for path in _NETNS_DIR.iterdir():
        match = _PROCESS.match(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            run("ip", "netns", "del", path.name, check=False)
