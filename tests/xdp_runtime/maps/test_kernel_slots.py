"""Maps whose entries are programs, maps or targets, and those without entries: what user space may
do to them, at random, here and in the kernel.

What is put in stands for something that is made on both sides: a program, an inner map, an
interface.  Ids and numbers differ, so that what is read is compared by what it stands for.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.kernel_pair import Answer, Theirs, answer
from tests.xdp_runtime.maps.test_limits import plain
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime import bpf_syscall
from xdp_runtime.bpf_syscall import Cmd
from xdp_runtime.isa import Exit, Imm, Mov, encode
from xdp_runtime.kernel import load_raw
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.limits import FLAGS
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType

pytestmark = [pytest.mark.root, needs_bpf()[1]]
INNER = MapSpec("i", MapType.HASH, 4, 8, 4)
OUTER = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
DEVICES = (MapType.DEVMAP, MapType.DEVMAP_HASH)
KINDS = (MapType.PROG_ARRAY, *OUTER, *DEVICES, MapType.CPUMAP, MapType.XSKMAP,
         MapType.PERF_EVENT_ARRAY, MapType.STACK_TRACE, MapType.RINGBUF, MapType.USER_RINGBUF,
         MapType.ARENA)
ODD_FLAGS = (*(0,) * 8, 1, 2, 3, 4, 5, 8, 1 << 32, (1 << 64) - 1)
NOTHING = (errno.ENOENT, None)


@dataclass
class Slots:
    """`values` pairs what is put in here and there; `shown` says what was read stands for."""

    ours: Map
    theirs: Theirs
    values: list[tuple[Any, bytes]]
    shown: Callable[[Any, bytes], tuple[Any, Any]]


def _id_of(fd: int) -> int:
    return int(struct.unpack("=2I", bpf_syscall.info(fd, 8))[1])


@contextmanager
def slots(spec: MapSpec) -> Iterator[Slots]:
    with ExitStack() as held:
        inner_fd = 0
        if spec.type in OUTER:
            inner_fd = held.enter_context(KernelMap(INNER)).fd
            spec = replace(spec, inner=INNER)
        fd = KernelMap(replace(spec, inner=None), inner_fd).fd
        held.callback(os.close, fd)
        theirs = Theirs(fd, spec)
        ours = held.enter_context(compiled_map(spec, bpf_syscall.possible_cpus()))
        yield Slots(ours, theirs, *_values(spec, ours, held))


def _values(spec: MapSpec, ours: Map, held: ExitStack) -> Any:
    if spec.type in OUTER:
        made = []
        for one in (INNER, INNER, replace(INNER, value_size=4)):
            there = held.enter_context(KernelMap(one))
            made.append((held.enter_context(compiled_map(one, ours.workers)), there.fd))
        known = [(inner, _id_of(fd)) for inner, fd in made]

        def which(mine: Any, there: bytes) -> tuple[Any, Any]:
            inner = ours._inner[int.from_bytes(mine, "little")]
            return ([n for n, one in enumerate(known) if one[0] is inner],
                    [n for n, one in enumerate(known)
                     if one[1] == int.from_bytes(there, "little")])

        return [(inner, fd.to_bytes(4, "little")) for inner, fd in made], which
    if spec.type == MapType.PROG_ARRAY:
        fds = [load_raw(encode((Mov(True, 0, Imm(2)), Exit()))) for _ in range(2)]
        for fd in fds:
            held.callback(os.close, fd)
        ids = [_id_of(fd) for fd in fds]
        return ([((n + 1).to_bytes(4, "little"), fd.to_bytes(4, "little"))
                 for n, fd in enumerate(fds)],
                lambda mine, there: (int.from_bytes(mine, "little") - 1,
                                     ids.index(int.from_bytes(there, "little"))))
    tail = bytes(max(spec.value_size - 4, 0))
    if spec.type in DEVICES:
        same = [(1).to_bytes(4, "little") + tail, bytes(4) + tail]  # the loopback interface, none
    elif spec.type == MapType.CPUMAP:
        same = [size.to_bytes(4, "little") + tail for size in (0, 1, 192, 16384, 16385)]
    else:
        same = []  # an event or a socket of the kernel: there is no such thing here
    return [(value, value) for value in same], lambda mine, there: (mine, there)


def _keys(spec: MapSpec) -> list[bytes]:
    if not spec.key_size:
        return [b""]
    return [number.to_bytes(spec.key_size, "little")
            for number in (0, 1, 2, 3, 4, 5, 1 << 31, (1 << 32) - 1)]


def run(kind: MapType, seed: int, steps: int = 200) -> set[int]:
    """One seed; the error numbers that were seen."""
    rng = random.Random(f"{kind}-{seed}")
    spec = plain(kind)
    if kind in (*DEVICES, MapType.CPUMAP):
        spec = replace(spec, value_size=rng.choice((4, 8)))
    # a program in the kernel's arrays makes them its own; RDONLY_PROG is for the others
    known = [flag for flag in FLAGS[kind] if flag not in (MapFlag.WRONLY, MapFlag.STACK_BUILD_ID)]
    if known and rng.random() < 0.4:
        spec = replace(spec, flags=spec.flags | rng.choice(known))
    if spec.flags & MapFlag.RDONLY_PROG and spec.flags & MapFlag.WRONLY_PROG:
        spec = replace(spec, flags=spec.flags & ~MapFlag.WRONLY_PROG)
    codes: set[int] = set()
    with slots(spec) as both:
        one, theirs, keys = both.ours, both.theirs, _keys(spec)
        for number in range(steps):
            key, flags = rng.choice(keys), rng.choice(ODD_FLAGS)
            name = rng.choice(("lookup", "lookup", "update", "update", "update", "delete", "next",
                               "take", "freeze" if rng.random() < 0.02 else "lookup"))
            if name == "update" and not both.values and spec.type not in (
                    MapType.RINGBUF, MapType.USER_RINGBUF, MapType.STACK_TRACE, MapType.ARENA):
                continue
            mine, there = _step(both, name, key, flags, rng, one, theirs)
            assert mine == there, (kind.name, seed, number, spec, name, key.hex(), flags)
            codes.add(mine[0])
        if kind == MapType.XSKMAP:
            return codes  # the kernel keeps what is in it to itself
        if "next_key" in one.family.operations:
            assert _entries(both, lambda key: answer(lambda: one.next_key(key))) == _entries(
                both, lambda key: theirs.call(Cmd.MAP_GET_NEXT_KEY, key))
    return codes


def _entries(both: Slots, next_key: Callable[[bytes | None], Answer]) -> list[bytes]:
    found, key = [], next_key(None)[1]
    while key is not None:
        found.append(key)
        key = next_key(key)[1]
    ordered = both.ours.spec.type not in (MapType.HASH_OF_MAPS, MapType.DEVMAP_HASH)
    return found if ordered else sorted(found)


def _step(both: Slots, name: str, key: bytes, flags: int, rng: random.Random, one: Map,
          theirs: Theirs) -> tuple[Answer, Answer]:
    size = one.spec.value_size
    match name:
        case "lookup":
            mine = _missing(answer(lambda: one.lookup(key, flags)))
            there = theirs.call(Cmd.MAP_LOOKUP_ELEM, key, flags=flags)
            if one.spec.type == MapType.XSKMAP and not flags and there[0] == errno.EOPNOTSUPP:
                there = NOTHING
            if not mine[0] and not there[0]:
                a, b = both.shown(mine[1], there[1])
                return (0, a), (0, b)
            return mine, there
        case "take":
            return (_missing(answer(lambda: one.lookup_and_delete(key, flags))),
                    theirs.call(Cmd.MAP_LOOKUP_AND_DELETE_ELEM, key, flags=flags))
        case "delete":
            return answer(lambda: one.delete(key)), theirs.call(Cmd.MAP_DELETE_ELEM, key)
        case "next":
            unordered = one.spec.type in (MapType.HASH_OF_MAPS, MapType.DEVMAP_HASH)
            asked = key if rng.random() < 0.8 and key and not unordered else None
            found = (_missing(answer(lambda: one.next_key(asked))),
                     theirs.call(Cmd.MAP_GET_NEXT_KEY, asked))
            return ((found[0][0], None), (found[1][0], None)) if unordered else found
        case "freeze":
            return answer(one.freeze), theirs.freeze()
    value, number = rng.choice(both.values or [(bytes(size), bytes(size))])
    if isinstance(value, Map):
        return (answer(lambda: one.set_inner(key, value, flags)),
                theirs.call(Cmd.MAP_UPDATE_ELEM, key, number, flags))
    return (answer(lambda: one.update(key, value, flags)),
            theirs.call(Cmd.MAP_UPDATE_ELEM, key, number or bytes(1), flags))


def _missing(found: Answer) -> Answer:
    return found if found != (0, None) else NOTHING


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_slots(kind: MapType, seed: int) -> None:
    codes = run(kind, seed)
    assert len(codes) > 1


def test_every_type_is_compared() -> None:
    from tests.xdp_runtime.maps.test_kernel_traces import KINDS as OTHERS
    assert {*KINDS, *OTHERS} == set(FAMILIES)
