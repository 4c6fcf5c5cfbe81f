"""What user space does to the maps between packets: updates, deletes, other maps and programs.

Packets and operations are cut into rounds: a few packets that the interpreter sees, too, then
operations; then the other packets in three parts, with operations behind each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from bench.fuzz.engines import LISTS, OF_MAPS, UNSEEN, Step
from xdp_runtime.isa import LoadMap
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object

SAMPLE = 6  # packets that the interpreter sees, too
_PARTS = 3
_FLAGS = (0, 0, 0, 1, 2, 3)


def random_steps(obj: Object, seed: int, count: int) -> list[Step]:
    """Operations of user space on the maps of an Object."""
    rng = random.Random(seed)
    specs = [spec for spec in obj.maps if spec.type not in UNSEEN and spec.type != MapType.RINGBUF
             and spec.global_kind is not GlobalKind.RODATA]
    used = {insn.map for insn in obj.programs[0].insns if isinstance(insn, LoadMap)}
    outer = [spec for number, spec in enumerate(obj.maps) if spec.slots and number in used]
    steps: list[Step] = []
    for _ in range(count):
        if outer and rng.random() < 0.1:
            steps.append(_pointing(rng, obj, rng.choice(outer)))
            continue
        spec = rng.choice(specs)
        value, flags = rng.randbytes(spec.value_size), rng.choice(_FLAGS)
        if spec.type in LISTS:
            steps.append((spec.name, rng.choice(("push", "push", "pop")), b"", value, flags))
            continue
        key = rng.randrange(10).to_bytes(spec.key_size, "little")
        if spec.type == MapType.LPM_TRIE:
            key = rng.randrange(36).to_bytes(4, "little") + rng.randbytes(1) + bytes(3)
        operation = rng.choice(("update", "update", "delete", "lookup"))
        steps.append((spec.name, operation, key, value, flags))
    return steps


def _pointing(rng: random.Random, obj: Object, spec: MapSpec) -> Step:
    """Another map or program in a slot, or none."""
    key = rng.randrange(spec.max_entries + 1).to_bytes(4, "little")
    if rng.random() < 0.3:
        return spec.name, "delete", key, b"", 0
    names = sorted({name for _, name in spec.slots})
    if spec.type not in OF_MAPS:
        names.append(obj.programs[0].name)
    return spec.name, "point", key, rng.choice(names).encode(), 0


def rounds(packets: Sequence[bytes], steps: Sequence[Step]
           ) -> Iterator[tuple[int, Sequence[bytes], Sequence[Step]]]:
    """(number of the first packet, packets, operations that follow them)"""
    sizes = [min(SAMPLE, len(packets))]
    sizes += [-(-(len(packets) - sizes[0]) // _PARTS)] * _PARTS
    first, done = 0, 0
    for size in sizes:
        ends = -(-len(steps) // 2) if first == 0 else done + len(steps) // 2 // _PARTS
        part = packets[first : first + size]
        if part:
            yield first, part, steps[done:ends]
        first, done = first + len(part), ends
