"""xdpu bench prog OBJ: a user's objects and packets, and everything that may be wrong with them."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench import frames, packets, prog, rig
from bench.cases import EXAMPLES
from bench.noise import BUSY_CPUS, Watch
from bench.record import interruptible, stop_if_interrupted
from control.cli import main
from tests.privileges import needs_bpf
from xdp_runtime import kernel
from xdp_runtime.errors import ConfigError, LoadError, PortError
from xdp_runtime.state import Verdict

pytestmark = needs_bpf()
ROOT = EXAMPLES.parent
BRIEF = ("--repeat", "200", "--rounds", "2")


def write_pcap(path: Path, *contents: bytes, link: int = 1) -> Path:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)
    path.write_bytes(head + b"".join(
        struct.pack("<IIII", 0, 0, len(one), len(one)) + one for one in contents))
    return path


def bench(out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["bench", "prog", *words, *BRIEF, "--out", str(out)])
    return code, json.loads((out / "bench.json").read_text())


# ---- packets -------------------------------------------------------------------------------------

def test_pcap_is_read_in_order(tmp_path: Path) -> None:
    file = write_pcap(tmp_path / "in.pcap", frames.udp4(1), b"short", frames.arp())
    found, notes = packets.read(str(file))
    assert [one.name for one in found] == ["#1", "#3"] and found[1].content == frames.arp()
    assert notes == ["1 packets are shorter than 14 or longer than 3480 bytes: left out"]


def test_pcapng_of_xdpu_run_is_read(tmp_path: Path) -> None:
    source = write_pcap(tmp_path / "in.pcap", frames.udp4(1), frames.echo4())
    done = subprocess.run([sys.executable, "-m", "control", "run", str(EXAMPLES / "pass.o"),
                           "--pcap", str(source), "--out", str(tmp_path / "out.pcapng")], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, _ = packets.read(str(tmp_path / "out.pcapng"))
    assert [one.content for one in found] == [frames.udp4(1), frames.echo4()]


@pytest.mark.parametrize(("content", "error", "said"), [
    (b"hello, world", PortError, "neither pcap nor pcapng"),
    (b"\xd4\xc3\xb2\xa1" + bytes(16) + b"\x71\0\0\0", PortError, "link type is 113"),
    (b"\xd4\xc3\xb2\xa1" + bytes(16) + b"\x01\0\0\0", PortError, "no packet"),
    (b"\xd4\xc3\xb2\xa1" + bytes(16) + b"\x01\0\0\0" + struct.pack("<4I", 0, 0, 60, 60),
     PortError, "damaged"),
])
def test_bad_captures(tmp_path: Path, content: bytes, error: type[Exception], said: str) -> None:
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(error, match=said):
        packets.read(str(tmp_path / "in"))
    with pytest.raises(ConfigError, match="No such file"):
        packets.read(str(tmp_path / "none"))


# ---- paths ---------------------------------------------------------------------------------------

def test_paths_of_an_object_are_found_and_measured(tmp_path: Path) -> None:
    file = write_pcap(tmp_path / "in.pcap", *[frames.udp4(80)] * 3, *[frames.udp4(2323)] * 2,
                      frames.arp())
    code, result = bench(tmp_path / "out", str(EXAMPLES / "firewall.o"), "--packets", str(file),
                         "--set-map", "blocked_ports=2323:0", "--engines", "kernel,jit,interp")
    assert code == 0 and result["complete"]
    rows = {row["name"]: row for row in result["rows"]}
    assert {name: (row["verdict"], row["stands_for"]) for name, row in rows.items()} == {
        "firewall/#1": ("PASS", 3), "firewall/#4": ("DROP", 2), "firewall/#6": ("PASS", 1)}
    for row in rows.values():
        assert {"kernel", "ours", "interp", "noise"} <= row.keys()
        assert row["interp"]["raw"]["median"] > row["ours"]["raw"]["median"]


def test_a_wrong_verdict_for_one_packet_of_many_is_the_result(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: our program gives another verdict for one packet only."""
    file = write_pcap(tmp_path / "in.pcap", *[frames.udp4(80)] * 3, frames.udp4(2323))
    run = rig.Engines.run

    def wrong(engines: rig.Engines, packet: bytes) -> Any:
        mine, found = run(engines, packet)
        if packet != frames.udp4(2323):
            return mine, found
        return mine, planted(engines, packet, mine)

    def planted(engines: rig.Engines, packet: bytes, mine: Any) -> str:
        from bench.agree import difference, outcome

        assert engines.kernel is not None
        return difference(("kernel", "ours"), outcome(engines.kernel.run(packet)),
                          mine._replace(retval=int(Verdict.TX)))

    with mock.patch.object(rig.Engines, "run", wrong):
        code, result = bench(tmp_path / "out", str(EXAMPLES / "firewall.o"), "--packets",
                             str(file))
    assert code == 1
    assert [(row["name"], row["ok"], row["mismatch"]) for row in result["rows"]] == [
        ("firewall/#4", False, "verdict: kernel 2, ours 3")]
    assert "MISMATCH verdict: kernel 2, ours 3" in capsys.readouterr().out


def test_a_program_that_drops_everything_at_once(tmp_path: Path) -> None:
    _, result = bench(tmp_path, str(EXAMPLES / "drop.o"))
    assert [row["verdict"] for row in result["rows"]] == ["DROP"]
    assert "drops every packet at once" in result["notes"][0]
    assert "--set-map" in result["notes"][0]


def test_maps_with_chance_in_them_are_not_compared(tmp_path: Path) -> None:
    code, result = bench(tmp_path, str(EXAMPLES / "helpers.o"))
    assert code == 0
    assert any("maps are not compared" in note and "bpf_ktime_get_ns" in note
               for note in result["notes"])


# ---- engines -------------------------------------------------------------------------------------

def test_what_the_kernel_refuses_is_measured_here_only(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> kernel.KernelProgram:
        raise LoadError("program xdp_tx", "the kernel's verifier says: math is hard")

    with mock.patch.object(rig, "load_into_kernel", refuse):
        code, result = bench(tmp_path, str(EXAMPLES / "tx.o"))
    assert code == 0
    for row in result["rows"]:
        assert row["kernel_refuses"].endswith("the kernel's verifier says: math is hard")
        assert "ours" in row and "kernel" not in row and row["ratio"] is None
    assert "the kernel refuses it: program xdp_tx" in capsys.readouterr().out


def test_what_we_refuse_is_a_failure(tmp_path: Path) -> None:
    code, result = bench(tmp_path, str(ROOT / "tests" / "control" / "objects" / "fault.o"))
    assert code == 1
    assert "is not proven to exist" in result["rows"][0]["mismatch"]


def test_engines_are_chosen(tmp_path: Path) -> None:
    code, result = bench(tmp_path, "firewall", "--engines", "jit")
    assert code == 0 and all("kernel" not in row and "ours" in row for row in result["rows"])


# ---- ends ----------------------------------------------------------------------------------------

def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """A real signal to a real process, once its first row is on disk."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "control", "bench", "prog", "--repeat", "2000", "--rounds", "20",
         "--out", str(out)], cwd=ROOT,
        stdout=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = out / "bench.json"
        if file.exists() and json.loads(file.read_text()).get("rows"):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    result = json.loads((out / "bench.json").read_text())
    assert result["interrupted"] and not result["complete"] and result["rows"][0]["ok"]
    assert "demo/echo" in result["waiting"]
    assert "interrupted; not measured: " in text


def test_ctrl_c_in_a_destructor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops what is raised there."""
    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))
    with interruptible():
        stop_if_interrupted()
        Ending()
        with pytest.raises(KeyboardInterrupt):
            stop_if_interrupted()
    assert dropped == [KeyboardInterrupt]
    stop_if_interrupted()


def test_an_interrupted_row_says_how_much_of_it_there_is() -> None:
    sample = prog.OurSide.sample
    calls = 0

    def interrupted(side: prog.OurSide, count: int) -> prog.Sample:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return sample(side, count)

    from bench.cases import choose

    with mock.patch.object(prog.OurSide, "sample", interrupted):
        result = prog.run(choose(["pass", "tx"]), prog.Plan(100, 50), max(os.sched_getaffinity(0)))
    assert [row["rounds"] for row in result["rows"]] == [4]
    assert len(result["rows"][0]["ours"]["samples"]["net"]) == 4
    assert len(result["rows"][0]["kernel"]["samples"]["net"]) == 4
    assert result["waiting"] == ["tx"] and prog.code_of(result) == 130
    assert "interrupted after 4 rounds" in prog.remarks(result["rows"][0])


_FULL = """
import json, os, subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", sys.argv[1]], check=True)
from bench import prog
add = prog.Record.add
def fill_up(record, row):
    with open(Path(sys.argv[1]) / "others", "wb", 0) as others:
        try:
            while True:
                others.write(bytes(1024))
        except OSError:
            pass
    add(record, row)
prog.Record.add = fill_up
sys.exit(prog.main(["pass", "tx", "--repeat", "200", "--rounds", "2", "--out", sys.argv[1]]))
"""


def test_a_disk_that_fills_up_is_told_and_the_figures_go_on(tmp_path: Path) -> None:
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", _FULL, str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "NOT written: " in done.stdout
    assert "\npass " in done.stdout and "\ntx " in done.stdout


def test_a_folder_that_cannot_be_written_is_told_before_measuring(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "prog", "pass", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written to: Not a directory" in capsys.readouterr().err


# ---- noise ---------------------------------------------------------------------------------------

def test_a_noisy_neighbour_is_named() -> None:
    """A busy process on another CPU, until it has had CPU enough to be seen."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU: there is no other one for a neighbour")
    busy = subprocess.Popen([sys.executable, "-c", "import os\n"
                             f"os.sched_setaffinity(0, {{{cpus[0]}}})\nwhile True: pass"])
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            watch = Watch({cpus[1]})
            time.sleep(0.5)
            noise = watch.noise()
            if any(pid == busy.pid for _, pid, _ in noise.who):
                break
    finally:
        busy.kill()
        busy.wait()
    assert noise.busy_cpus > BUSY_CPUS or len(cpus) > 64
    assert "a noisy neighbour" in noise.complaints()[0]
    rows = [{"name": "tx", "noise": noise.record()}, {"name": "pass", "noise": {"complaints": []}}]
    assert prog.noisy(rows)[0].startswith("1 of 2 rows were disturbed; tx: a noisy neighbour")
