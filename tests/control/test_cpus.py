"""Where workers are pinned, on machines that are files here."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.cpus import Topology, choose, numbers, pick, remarks, say
from xdp_runtime.errors import ConfigError


@pytest.fixture
def two_sockets(tmp_path: Path) -> Topology:
    """Two nodes of four cores, two threads each: CPU n and n + 8; eth0 on node 1, eth1 on none."""
    for node, cpus in ((0, "0-3,8-11"), (1, "4-7,12-15")):
        folder = tmp_path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    for cpu in range(16):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    for where, node in (("class/net/eth0/device", 1), ("class/net/eth1/device", -1),
                        ("bus/pci/devices/0000:01:00.0", 0)):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "numa_node").write_text(f"{node}\n")
    (tmp_path / "class/net/veth0").mkdir()
    return Topology.read(tmp_path)


def test_what_sysfs_says(two_sockets: Topology) -> None:
    assert [two_sockets.nodes[cpu] for cpu in (0, 3, 8, 4, 15)] == [0, 0, 0, 1, 1]
    assert [two_sockets.core(cpu) for cpu in (0, 8, 15, 99)] == [0, 0, 7, 99]
    assert [two_sockets.node_of(device) for device in (
        "eth0", "eth1", "veth0", "none0", "0000:01:00.0")] == [1, None, None, None, 0]
    assert numbers("0-2,5,7-8") == [0, 1, 2, 5, 7, 8] and numbers("") == []


@pytest.mark.parametrize(("workers", "used", "devices", "cpus"), [
    (4, [], ["eth0"], (4, 5, 6, 7)),
    (6, [], ["eth0"], (4, 5, 6, 7, 12, 13)),  # the other threads before the other node
    (9, [], ["eth0"], (4, 5, 6, 7, 12, 13, 14, 15, 1)),
    (3, [4, 5], ["eth0"], (6, 7, 12)),  # 12 shares a core with another run; node 0 is further
    (4, [], ["0000:01:00.0"], (1, 2, 3, 8)),  # the first one's sibling rather than that
    (9, [], ["veth0"], (1, 2, 3, 4, 5, 6, 7, 8, 9)),
    (2, [], ["eth0", "0000:01:00.0"], (1, 2)),
    (3, list(range(1, 16)), [], (0, 1, 2)),
    (20, [], [], (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0)),
])
def test_automatically(two_sockets: Topology, workers: int, used: list[int], devices: list[str],
                       cpus: tuple[int, ...]) -> None:
    assert pick(range(16), workers, used, devices, two_sockets) == cpus


def test_what_is_slower_is_said(two_sockets: Topology) -> None:
    assert list(remarks((4, 5), ["eth0", "eth1"], two_sockets)) == []
    assert list(remarks(None, ["eth0"], two_sockets)) == []
    assert list(remarks((1, 4, 12), ["eth0"], two_sockets)) == [
        "eth0 is on memory node 1, and CPU 1 is not: packets cross between nodes (--cpu)",
        "CPUs 4,12 are threads of one core, and share it"]


def test_by_option() -> None:
    """Of this machine, whatever it is."""
    import os

    allowed = sorted(os.sched_getaffinity(0))
    assert choose("none", 2) is None and say(None) == "not pinned"
    assert choose((allowed[0],), 3) == (allowed[0],) and say((1, 2)) == "on CPUs 1,2"
    with pytest.raises(ConfigError, match="--cpu 4095: this process may not run there"):
        choose((4095,), 1)
    got = choose("auto", len(allowed))
    assert got is not None and sorted(got) == allowed
