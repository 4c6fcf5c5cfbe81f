"""xdpu run --trace-aborted N, and what the summary says of aborted packets."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

from tests.control.run_xdpu import ROOT, xdpu

OBJECT = str(ROOT / "tests" / "dataplane" / "objects" / "redirects.o")


def capture(path: Path, frames: list[bytes]) -> str:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 1, 2, len(frame), len(frame)) + frame)
    return str(path)


def frame(first: int) -> bytes:
    return bytes([first]) + bytes(range(1, 64))


def test_the_first_aborted_packets_are_shown(tmp_path: Path) -> None:
    frames = [frame(n) for n in (4, 3, 4, 1, 0, 2, 3)]
    done = xdpu("run", OBJECT, "-n", "aborts", "--pcap", capture(tmp_path / "in.pcap", frames),
                "--trace-aborted", "3", "-j")
    assert done.returncode == 0
    shown = [line for line in done.stderr.splitlines() if re.match(r"xdpu: aborted \d", line)]
    assert [line.partition(" bytes: ")[2] for line in shown] == [
        "a verdict that does not exist (77)",
        "bpf_redirect or bpf_redirect_map was given flags that do not exist",
        "the program returned XDP_ABORTED"]
    assert all("program aborts," in line and "queue 0, worker 0, 64" in line for line in shown)
    assert "    0000  03 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  ................" \
        in done.stderr
    assert done.stderr.count("    0030  ") == 3
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["total"]["aborted"] == 5
    assert {(row["program"], row["reason"]): row["packets"] for row in said["aborted"]} == {
        ("aborts", "a verdict that does not exist"): 2,
        ("aborts", "bpf_redirect or bpf_redirect_map was given flags that do not exist"): 2,
        ("aborts", "the program returned XDP_ABORTED"): 1}


def test_reasons_are_told_without_being_asked(tmp_path: Path) -> None:
    path = capture(tmp_path / "in.pcap", [frame(1), frame(0)])
    done = xdpu("run", OBJECT, "-n", "aborts", "--pcap", path)
    assert done.returncode == 0
    assert "1 of program aborts: the program returned XDP_ABORTED" in done.stderr
    assert "1 of program aborts: bpf_redirect or" in done.stderr
    assert "xdpu: aborted 1" not in done.stderr
