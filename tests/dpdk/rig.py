"""A run of chains.o on net_pcap devices, in a process of its own: the EAL starts once in one."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dataplane import pcapfile
from dataplane.pcapfile import CapturedPacket

ROOT = Path(__file__).resolve().parents[2]
OBJECT = ROOT / "tests" / "dataplane" / "objects" / "chains.o"
MARKS = [
    pytest.mark.dpdk,
    pytest.mark.skipif(find_spec("dpdk._native") is None,
                       reason="dpdk._native is not built (needs libdpdk-dev)"),
]
_RUN = """
import json, sys, time
from pathlib import Path
from dataplane.engine import Engine
from dpdk.port import DpdkPort
from xdp_runtime.elf import read_object
obj, program, wanted, *devices = sys.argv[1:]
ports = [DpdkPort.open(device, frags=program == "frags") for device in devices]
engine = Engine(read_object(Path(obj)), ports, program=program, busy_poll=True)
engine.start()
deadline = time.monotonic() + 20
while engine.stats.total()["rx_packets"] < int(wanted) and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.2)
engine.stop()
total, said = engine.stats.total(), [port.statistics() for port in ports]
modes = [port.mode for port in ports]
for port in ports:
    port.close()
engine.close()
print(json.dumps({"total": total, "ports": said, "modes": modes,
                  "left": [n for port in ports for n in port.left]}))
"""


def packet(rng: random.Random, size: int, verdict: int, ifindex: int = 0, pull: int = 0,
           head: int = 0, tail: int = 0) -> bytes:
    made = bytes(12) + b"\x88\xb5" + struct.pack("<IIIii", verdict, ifindex, pull, head, tail)
    return made + rng.randbytes(size - len(made))


class Rig:
    """net_pcap0 reads `given`, of which `unfit` do not reach the program; what it and net_pcap1
    send are files."""

    def __init__(self, folder: Path, given: list[bytes], program: str = "frags",
                 unfit: int = 0) -> None:
        packets = [CapturedPacket(i, one, len(one)) for i, one in enumerate(given)]
        (folder / "in").write_bytes(
            pcapfile.pcap_header() + b"".join(map(pcapfile.pcap_record, packets)))
        (folder / "none").write_bytes(pcapfile.pcap_header())
        devices = [f"net_pcap0,rx_pcap={folder}/in,tx_pcap={folder}/out0",
                   f"net_pcap1,rx_pcap={folder}/none,tx_pcap={folder}/out1"]
        done = subprocess.run([sys.executable, "-c", _RUN, str(OBJECT), program,
                               str(len(given) - unfit),
                               *devices], cwd=ROOT, capture_output=True, text=True, timeout=100,
                              check=False)
        assert done.returncode == 0, done.stderr
        self.said: dict[str, Any] = json.loads(done.stdout)
        self.total: dict[str, int] = self.said["total"]
        self.out = [[p.data for p in pcapfile.read_packets(folder / f"out{n}")] for n in (0, 1)]
        assert self.said["left"] == [0, 0]
