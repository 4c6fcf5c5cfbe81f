"""Programs that look at no packet: whole batches are sent or dropped, and everything is counted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane import pcapfile
from dataplane.pcapfile import CapturedPacket
from tests.dpdk.rig import MARKS, ROOT

pytestmark = MARKS
_RUN = """
import json, struct, sys, time
from pathlib import Path
from dataplane.capture import Capture, Wanted
from dataplane.engine import Engine
from dataplane.rundir import Owner
from dpdk.port import DpdkPort
from tests.xdp_runtime.compiler.test_unseen import COUNT
from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec

def counting(verdict):
    spec = MapSpec("m", MapType.ARRAY, 4, 8, 1)
    program = ProgramSpec("p", "xdp", "xdp", assemble(COUNT.format(verdict), ["m"]))
    return Object("o", (program,), (spec,), "GPL")

def wait(reached):
    deadline = time.monotonic() + 60
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.001)
"""
_REPLACED = _RUN + """
port = DpdkPort.open("net_null0")

def run(first, *others, capture=None):
    engine = Engine(first, [port], busy_poll=True)
    total = lambda name="rx_packets": engine.stats.total()[name]
    def more(name="rx_packets"):
        before = total(name)
        wait(lambda: total(name) > before + 100_000)
        return total(name) > before + 100_000
    engine.start()
    for obj in others:
        more()
        engine.replace(obj)
    more()
    said = {}
    if capture is not None:
        capture.mkdir()
        one = Capture(Wanted(Owner.current()), capture / "1", 1)
        engine.add_capture(one)
        said["captured"] = more("rx_bytes")
        engine.remove_capture(one)
    engine.stop()
    if "m" in engine.program.raw_maps:
        said["counted"] = struct.unpack("<Q", engine.program.raw_maps["m"].lookup(bytes(4)))[0]
    said |= engine.stats.total()
    engine.close()
    return said

runs = [run(counting(3), counting(1), counting(3), capture=Path(sys.argv[1])),
        run(counting(3), read_object(Path("examples/tx.o")), counting(1))]
said = port.statistics()
port.close()
print(json.dumps({"runs": runs, "port": said, "left": port.left}))
"""
_SEGMENTS = _RUN + """
folder, verdict, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
port = DpdkPort.open(f"net_pcap0,rx_pcap={folder}/in,tx_pcap={folder}/out")
engine = Engine(counting(verdict), [port], busy_poll=True)
engine.start()
wait(lambda: engine.stats.total()["rx_packets"] >= wanted)
engine.stop()
total = engine.stats.total()
port.close(); engine.close()
print(json.dumps({"total": total, "left": port.left}))
"""


def result(code: str, *words: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["left"] == [0]
    return found


def test_replaced_and_captured(tmp_path: Path) -> None:
    """Of programs that say nothing of a packet but its verdict, by others, by programs that look at
    packets; while somebody captures, packets are looked at."""
    found = result(_REPLACED, tmp_path / "captures")
    first, second = found["runs"]
    assert first["counted"] == first["rx_packets"] and first["captured"]
    for total in (first, second):
        assert total["tx"] + total["drop"] == total["rx_packets"]
        assert total["rx_bytes"] == 64 * (total["rx_packets"] - total["unmeasured"])
        assert total["tx_bytes"] == 64 * (total["tx"] - total["unmeasured"])
        assert min(total["unmeasured"], total["drop"], total["tx"] - total["unmeasured"]) > 0
    assert found["port"]["ipackets"] == first["rx_packets"] + second["rx_packets"]
    assert found["port"]["opackets"] == first["tx"] + second["tx"]


@pytest.mark.parametrize("verdict", [1, 3])
def test_packets_of_several_segments(tmp_path: Path, verdict: int) -> None:
    rng = random.Random(9)
    given = [rng.randbytes(size) for _ in range(200) for size in (60, 9000, 1500, 2049)]
    (tmp_path / "in").write_bytes(pcapfile.pcap_header() + b"".join(
        pcapfile.pcap_record(CapturedPacket(i, one, len(one))) for i, one in enumerate(given)))
    total = result(_SEGMENTS, tmp_path, verdict, len(given))["total"]
    out = [packet.data for packet in pcapfile.read_packets(tmp_path / "out")]
    if verdict == 3:
        assert out == given and total["tx"] == total["unmeasured"] == len(given)
    else:
        assert not out and total["drop"] == len(given)
        assert total["rx_bytes"] == sum(map(len, given)) and total["unmeasured"] == 0
