"""The uXDP paper's programs: there are thirteen, and each does its work as in the kernel."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack

import pytest

from bench import prog
from bench.cases import Case
from bench.rig import Rig
from bench.uxdp import CASES, HERE
from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine

pytestmark = needs_bpf()
ONE = {case.name.removeprefix("uxdp/"): case for case in CASES}


def test_all_thirteen_are_there_with_their_source() -> None:
    sources = {path.stem for path in HERE.glob("*.c")}
    assert len(sources) == 13
    assert sources == {path.stem for path in HERE.glob("*.o")}
    assert sources == {case.object_path.stem for case in CASES}


@pytest.mark.skipif(shutil.which("clang") is None, reason="compiling needs clang")
def test_objects_are_those_of_their_source(tmp_path: object) -> None:
    if b"14.0.6" not in subprocess.run(["clang", "--version"], capture_output=True,
                                       check=True).stdout:
        pytest.skip("the objects were made by clang 14.0.6, which this is not")
    shutil.copytree(HERE.parents[1] / "examples", f"{tmp_path}/examples")
    shutil.copytree(HERE.parents[1] / "tests" / "xdp_runtime" / "programs",
                    f"{tmp_path}/tests/xdp_runtime/programs")
    shutil.copytree(HERE, f"{tmp_path}/bench/uxdp")
    subprocess.run(["make", "-s", "-B", "-C", f"{tmp_path}/bench/uxdp"], check=True)
    for path in HERE.glob("*.o"):
        with open(f"{tmp_path}/bench/uxdp/{path.name}", "rb") as made:
            assert made.read() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ONE)
def test_is_as_in_the_kernel_and_is_timed(name: str) -> None:
    """Verdict, bytes and maps in kernel, compiled code and interpreter; then every run's work."""
    row = prog.measure(ONE[name], prog.Plan(500, 2, ("kernel", "ours", "interp")))
    assert row["ok"], row
    assert {"kernel", "ours", "interp"} <= row.keys()


def ran(case: Case) -> bytes:
    obj = read_object(case.object_path)
    machine = Machine(obj, obj.program())
    for model in machine.maps:
        for key, value in case.entries.get(model.spec.name, {}).items():
            assert model.update(key, value) == 0
    result = machine.run(case.packet)
    assert result.verdict == case.verdict
    return result.data_out


def test_what_they_make_of_the_packet() -> None:
    """That they do what their names say, and not only the same everywhere."""
    packet = ONE["tx"].packet
    assert ran(ONE["tx"]) == packet[6:12] + packet[:6] + packet[12:]
    assert ran(ONE["maps"]) == ran(ONE["firewall-drop"]) == packet
    assert ran(ONE["ping"])[34] == 0 and ONE["ping"].packet[34] == 8
    tunnelled = ran(ONE["tunnel"])
    assert len(tunnelled) == len(packet) + 20 and tunnelled[34:] == packet[14:]
    assert tunnelled[23] == 4
    cut = ran(ONE["adjust_tail"])
    assert len(cut) == 14 + 20 + 8 + 28 and cut[34:36] == b"\x03\x04"
    assert cut[42:] == ONE["adjust_tail"].packet[14:42]
    assert ran(ONE["balancer"])[34:] == ONE["balancer"].packet[14:]
    balanced = ran(ONE["lb"])
    assert balanced[30:33] == bytes((10, 77, 2)) != ONE["lb"].packet[30:33]


def test_a_ring_that_nobody_reads_is_emptied() -> None:
    """Far more records than it holds, and every run does the same."""
    with ExitStack() as stack:
        rig = Rig(ONE["observer"], ("kernel", "ours"), stack)
        sides = rig.sides()
        for side in sides:
            assert side.sample(100_000)["raw"] > 0
        assert len(sides) == 2
