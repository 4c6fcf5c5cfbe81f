"""A process dies with a map's lock held, in the midst of a change; another takes over."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.lock import LOCK
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import COUNT, FRESH, LIMBO, RIPE, YOUNG, places
from xdp_runtime.object import MapFlag, MapSpec, MapType

FAMILIES = [MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH,
            MapType.LPM_TRIE]


def spec_of(kind: MapType, entries: int = 200) -> MapSpec:
    flags = MapFlag.NO_PREALLOC if kind == MapType.LPM_TRIE else 0
    return MapSpec("m", kind, 8, 8, entries, flags=flags)


def key_of(kind: MapType, i: int) -> bytes:
    if kind == MapType.LPM_TRIE:
        length, data = [(32, (10, 1, i, i)), (24, (10, 2, i, 0)), (28, (11, i, 0, 16)),
                        (32, (11, 0, i, 0)), (8, (i, 0, 0, 0))][i % 5]
        return length.to_bytes(4, "little") + bytes(data)
    return i.to_bytes(8, "little")


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def check(one: Map) -> None:
    """What the map says of itself is true."""
    keys = list(one.keys())
    assert len(keys) == len(set(keys)) == len(one)
    assert all(one.lookup(key) is not None for key in keys)
    parameters = one.family.parameters(one.spec, one.workers)
    names = len([p for p in parameters if isinstance(p, str)])
    trie = one.spec.type == MapType.LPM_TRIE
    step = int(parameters[7 if trie else names + 2]) // 8
    span = 0 if trie else int(parameters[names + 5]) & 0xFFFFFFFF
    head = one.memory("head")
    total = 0
    for number, place in enumerate(places(head)):
        count, fresh, *waiting = (int.from_bytes(head[place + at:place + at + 4], "little")
                                  for at in (COUNT, FRESH, RIPE, LIMBO, YOUNG))
        assert (fresh - number * span) // step - 1 == count + sum(waiting)
        total += count
    head.release()
    assert total == len(keys)


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
def test_a_lock_of_the_dead_is_taken_over(kind: MapType) -> None:
    with Map.create(spec_of(kind), 1) as one:
        compile_operations(one)
        values = {}
        for i in range(150):
            value = i.to_bytes(8, "big")
            one.update(key_of(kind, i), [value] if one.family.per_cpu else value)
            values[key_of(kind, i)] = value
        for i in range(0, 150, 3):
            if key_of(kind, i) in values:
                one.delete(key_of(kind, i))
                del values[key_of(kind, i)]
        head = one.memory("head")
        head[COUNT:COUNT + 4] = (77).to_bytes(4, "little")  # as if it had died before counting
        head[YOUNG:YOUNG + 4] = bytes(4)
        head[LOCK:LOCK + 4] = dead_pid().to_bytes(4, "little")
        head.release()
        new = key_of(kind, 1)
        one.update(new, [b"newvalue"] if one.family.per_cpu else b"newvalue")
        values[new] = b"newvalue"
        check(one)
        found = {k: v[0] if isinstance(v, list) else v for k, v in one.items()}
        assert found == values


KILLED = """
    import sys
    from pathlib import Path
    from tests.xdp_runtime.maps.loops import compile_loops
    from tests.xdp_runtime.maps.test_lock import churn
    from xdp_runtime.maps.map import Map

    one = Map.open(Path(sys.argv[1]))
    work = compile_loops(one, churn())["lock_churn"]
    print("ready", flush=True)
    work(int(sys.argv[2]), 1 << 40, int(sys.argv[3]))
"""


def churn():  # type: ignore
    """Update and delete at random, for ever."""
    from xdp_runtime.template import Template

    def factory(m):  # type: ignore
        update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
        delete = m.symbol("map.0.delete", "i64(i64, ptr)")

        def lock_churn(seed, rounds, trie):  # type: ignore
            key = m.alloca(16)
            value = m.alloca(16)
            state = seed
            for _ in range(rounds):
                state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
                i = m.lshr(state, 33) & 255
                m.store_u64(key, 0, i)
                if trie != 0:
                    m.store_u32(key, 0, 8 + (m.lshr(state, 43) % 25))
                    m.store_u32(key, 4, m.mul(i, 0x01030709) | 10)
                m.store_u64(value, 0, i)
                if m.lshr(state, 60) < 9:
                    update(0, key, value, 0)
                else:
                    delete(0, key)
            return 0

        return lock_churn

    return Template("lock_churn", factory, "i64(i64, i64, i64)")


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
def test_writers_are_killed(kind: MapType, tmp_path: Path) -> None:
    """Processes that do nothing but write are killed at any moment: the map stays whole."""
    rng = random.Random(kind)
    taken = 0
    with Map.create(spec_of(kind, 8000), 1, tmp_path) as one:
        compile_operations(one)
        for turn in range(8):
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "m"), str(turn),
                 str(int(kind == MapType.LPM_TRIE))], stdout=subprocess.PIPE)
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.005, 0.05))
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            head = one.memory("head")
            held = [place for place in places(head)
                    if ctypes.c_uint32.from_buffer(head, place + LOCK).value != 0]
            head.release()
            taken += len(held)
            for n in range(turn, turn + (60 if held else 1)):  # some in every shard
                key = key_of(kind, 1000 * n + turn if kind != MapType.LPM_TRIE else turn)
                one.update(key, [bytes(8)] if one.family.per_cpu else bytes(8))
                one.delete(key)
            check(one)
    assert taken, "no process died with the lock"
