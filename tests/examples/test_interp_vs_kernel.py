"""Every example on the interpreter and in the kernel: verdict, bytes, and maps afterwards."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.packets import packets_for
from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.object import MapType, Object

pytestmark = needs_bpf()

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.c"))
LOOPBACK = 1
ZERO = bytes(4)

# Maps that a control plane would fill: name of the example -> map -> key -> value.
ENTRIES = {
    "demo": {"blocked_ports": {struct.pack("=H", 2323): bytes(8)},
             "peer": {struct.pack("=I", LOOPBACK): struct.pack("=I", LOOPBACK)}},
    "firewall": {"blocked_ports": {struct.pack("=H", 2323): bytes(8)}},
    "ipip": {"tunnel": {ZERO: bytes.fromhex("c0000201c000020202aabbccddee0000")}},
    "redirect": {"peer": {struct.pack("=I", LOOPBACK): struct.pack("=I", LOOPBACK)}},
}
# What no two runs agree on.
INCOMPARABLE = {("helpers", "surroundings")}


@pytest.mark.parametrize(("name", "filled"),
                         [(name, False) for name in NAMES] + [(name, True) for name in ENTRIES])
def test_same_as_the_kernel(name: str, filled: bool) -> None:
    obj = read_object(EXAMPLES / f"{name}.o")
    machine = Machine(obj, obj.program(name))
    with load_into_kernel(obj, name) as kernel:
        if filled:
            _fill(machine, kernel, obj, name)
        for frame in packets_for(name, 200):
            ours, theirs = machine.run(frame, ingress_ifindex=LOOPBACK), kernel.run(frame)
            assert ours.verdict == theirs.retval, frame.hex()
            assert ours.data_out == theirs.data_out, frame.hex()
            assert ours.meta == theirs.meta, frame.hex()
        for index, spec in enumerate(obj.maps):
            if spec.type == MapType.PROG_ARRAY or (name, spec.name) in INCOMPARABLE:
                continue
            theirs_map, ours_map = kernel.maps[spec.name], machine.maps[index]
            if spec.type == MapType.PERCPU_ARRAY:
                _compare_sums(dict(ours_map.items()),
                              {key: theirs_map.lookup_percpu(key) or ()
                               for key, _ in theirs_map.items()})
            else:
                assert dict(ours_map.items()) == dict(theirs_map.items()), spec.name


def _fill(machine: Machine, kernel: KernelProgram, obj: Object, name: str) -> None:
    for map_name, content in ENTRIES[name].items():
        for key, value in content.items():
            kernel.maps[map_name].update(key, value)
            assert machine.maps[obj.map_index(map_name)].update(key, value) == 0


def _compare_sums(ours: dict[bytes, bytes], theirs: dict[bytes, tuple[bytes, ...]]) -> None:
    """Which CPU the kernel ran on is its own affair: counters of u64 are added up."""
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        layout = f"={len(value) // 8}Q"
        rows = [struct.unpack(layout, copy) for copy in theirs[key]]
        assert struct.unpack(layout, value) == tuple(sum(column) for column in zip(
            *rows, strict=True))
