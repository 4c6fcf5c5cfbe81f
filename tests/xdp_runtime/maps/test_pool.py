"""What is freed stays as it was until every worker has ended its batch."""

from __future__ import annotations

import ctypes
import errno
import mmap
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.xdp_runtime.maps import actors, program_actors, ring_actors
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import ENTER, EPOCH, LEAVE, spare
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

SPECS = [MapSpec("h", MapType.HASH, 8, 8, 4), MapSpec("l", MapType.LRU_HASH, 8, 8, 4),
         MapSpec("t", MapType.LPM_TRIE, 8, 8, 4, flags=MapFlag.NO_PREALLOC)]


def key_of(spec: MapSpec, i: int) -> bytes:
    head = 32 if spec.type == MapType.LPM_TRIE else 7
    return head.to_bytes(4, "little") + i.to_bytes(4, "big")


def address(one: Map, key: bytes) -> int:
    found = one._operation("peek")(0, key)
    assert found
    return int(found)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.type.name)
def test_a_batch_keeps_what_is_freed(spec: MapSpec) -> None:
    with compiled_map(spec, workers=3) as one:
        line, epoch = (ctypes.c_uint64.from_address(where) for where in one.line(2))
        one[key_of(spec, 0)] = b"heldheld"
        held = address(one, key_of(spec, 0))
        line.value = epoch.value  # worker 2 begins a batch, and finds it
        del one[key_of(spec, 0)]
        used = set()
        for i in range(3000):
            one[key_of(spec, 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(spec, 1)))
        assert held not in used and ctypes.string_at(held, 8) == b"heldheld"
        line.value = 0  # and ends it
        for i in range(3000):
            one[key_of(spec, 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(spec, 1)))
        assert held in used
        assert one.reused_early == 0


def test_without_batches_memory_is_reused_soon() -> None:
    with compiled_map(SPECS[0]) as one:
        used = set()
        for i in range(5000):
            one[key_of(SPECS[0], 1)] = i.to_bytes(8, "little")
            used.add(address(one, key_of(SPECS[0], 1)))
        assert len(used) < 200


LARGE = MapSpec("h", MapType.HASH, 8, 1 << 16, 2)


def _update(one: Map, worker: int, i: int) -> int:
    value = i.to_bytes(8, "little") * (one.spec.value_size // 8)
    return int(one._operation("update")(worker, key_of(one.spec, 1), value, 0))


def test_more_than_there_is_in_ones_own_batch() -> None:
    """As in the kernel an update of a key that exists does not fail; but it is told."""
    with compiled_map(LARGE, 2) as one:
        line, epoch = (ctypes.c_uint64.from_address(where) for where in one.line(0))
        line.value = epoch.value
        for i in range(spare(1 << 16) + 100):
            assert _update(one, 0, i) == 0
        assert one.reused_early > 0
        assert one.memory("head")[EPOCH] >= 1
        assert one[key_of(LARGE, 1)][:8] == i.to_bytes(8, "little")


@pytest.mark.parametrize("own", [False, True])
def test_what_anothers_batch_holds_is_never_reused(own: bool) -> None:
    with compiled_map(LARGE, 2) as one:
        line, epoch = (ctypes.c_uint64.from_address(where) for where in one.line(0))
        mine = ctypes.c_uint64.from_address(one.line(1)[0])
        one[key_of(LARGE, 1)] = b"heldheld" * (1 << 13)
        held = address(one, key_of(LARGE, 1))
        line.value = epoch.value
        mine.value = epoch.value if own else 0
        results = [_update(one, 1, i) for i in range(spare(1 << 16) + 100)]
        assert set(results) == {0, -12} and results == sorted(results, reverse=True)
        assert results.count(0) >= spare(1 << 16)
        assert ctypes.string_at(held, 8) == b"heldheld" and one.reused_early == 0
        assert one[key_of(LARGE, 1)][:8] == (results.count(0) - 1).to_bytes(8, "little")
        one.delete(key_of(LARGE, 1))  # needs no memory
        line.value = mine.value = 0
        assert not any(_update(one, 1, i) for i in range(1000))


HOLD = """
    import ctypes, mmap, sys
    from pathlib import Path
    from tests.xdp_runtime.maps.test_pool import holding, key_of
    from tests.xdp_runtime.maps.loops import compile_loops
    from xdp_runtime import state as st
    from xdp_runtime.maps.map import Map
    from xdp_runtime.object import MapSpec

    spec = eval(sys.argv[2], {"MapSpec": MapSpec})
    file = open(sys.argv[1] + "/flag", "r+b")
    flag = ctypes.c_uint64.from_buffer(mmap.mmap(file.fileno(), 4096))
    with Map.create(spec, 1, Path(sys.argv[1])) as one:
        work = compile_loops(one, holding())["pool_holding"]
        value = b"heldheld" * (spec.value_size // 8)
        one[key_of(spec, 0)] = [value] if one.family.per_cpu else value
        memory = (ctypes.c_uint64 * 32)()
        block = (ctypes.c_uint64 * 3)(1, *one.line(0))
        memory[st.W_LINES // 8] = ctypes.addressof(block)
        print("ready", flush=True)
        print(work(ctypes.addressof(memory), key_of(spec, 0), ctypes.addressof(flag)), flush=True)
        sys.stdin.readline()
"""


def holding() -> Template:
    """In a batch: find a key, wait for the flag to be 2, and say if the value is still the same."""
    def factory(m: Any) -> Any:
        lookup = m.symbol("map.0.lookup", "ptr(i64, ptr)")
        enter, leave = m.extern(ENTER), m.extern(LEAVE)

        def pool_holding(memory, key, flag):  # type: ignore
            enter(memory)
            found = lookup(0, key)
            before = m.relaxed_u64(found, 0)
            m.release_u64(flag, 0, 1)
            while m.acquire_u64(flag, 0) != 2:
                m.pause()
            same = m.relaxed_u64(found, 0) == before
            leave(memory)
            if same:
                return 1
            return 0

        return pool_holding

    return Template("pool_holding", factory, "i64(ptr, ptr, ptr)", (ENTER, LEAVE))


@contextmanager
def _in_a_batch(spec: MapSpec, folder: Path) -> Iterator[tuple[Any, Map, Any]]:
    """Another process, which made the map and is in a batch that has found a key."""
    (folder / "flag").write_bytes(bytes(4096))
    with (folder / "flag").open("r+b") as file:
        flag = ctypes.c_uint64.from_buffer(mmap.mmap(file.fileno(), 4096))
    text = (f"MapSpec('m', {int(spec.type)}, {spec.key_size}, {spec.value_size}, "
            f"{spec.max_entries}, {int(spec.flags)})")
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD), str(folder), text],
                             stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        while flag.value != 1:
            assert child.poll() is None
            time.sleep(0.001)
        with Map.open(folder / "m") as one:
            compile_operations(one)
            yield child, one, flag
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdout, child.stdin):
            if pipe is not None:
                pipe.close()


def _until_refused(one: Map, most: int) -> int:
    """How many updates were made; of a new key each time in turn, and all are taken out again."""
    for i in range(most):
        key = key_of(one.spec, 1)
        value = i.to_bytes(8, "little") * (one.spec.value_size // 8)
        try:
            one.update(key, [value] if one.family.per_cpu else value)
            one.delete(key)
        except OSError as error:
            assert error.errno == errno.ENOMEM
            return i
    return most


STOPPED = [replace(spec, name="m", value_size=4096) for spec in SPECS] + [
    MapSpec("m", MapType.PERCPU_HASH, 8, 4096, 4),
    MapSpec("m", MapType.LRU_PERCPU_HASH, 8, 4096, 4),
    MapSpec("m", MapType.LRU_HASH, 8, 4096, 4, flags=MapFlag.NO_COMMON_LRU)]
stopped = pytest.mark.parametrize("spec", STOPPED, ids=lambda s: f"{s.type.name}-{s.flags:d}")


@stopped
def test_a_worker_is_stopped_in_its_batch(spec: MapSpec, tmp_path: Path) -> None:
    """By SIGSTOP, while it holds a value: others may write until there is no memory left, and what
    it holds is not touched."""
    with _in_a_batch(spec, tmp_path) as (child, one, flag):
        child.send_signal(signal.SIGSTOP)
        one.delete(key_of(spec, 0))
        most = 4 * (spare(32) + 1000)
        done = _until_refused(one, most)
        assert 64 <= done < most and one.reused_early == 0
        assert _until_refused(one, 5) == 0
        child.send_signal(signal.SIGCONT)
        flag.value = 2
        assert child.stdout.readline() == b"1\n"
        assert _until_refused(one, 2000) == 2000


@stopped
def test_a_worker_is_killed_in_its_batch(spec: MapSpec, tmp_path: Path) -> None:
    """By SIGKILL: nobody waits for it for ever."""
    with _in_a_batch(spec, tmp_path) as (child, one, _):
        child.kill()
        child.wait()
        most = 2 * (spare(32) + 1000)
        assert _until_refused(one, most) == most and one.reused_early == 0
        assert one.lookup(key_of(spec, 0)) is not None


@pytest.mark.parametrize("kind", actors.FAMILIES, ids=lambda kind: kind.name)
def test_workers_and_another_process_lose_nothing(kind: MapType) -> None:
    found = actors.run(kind, 1.0)
    assert found["operations"] > 100_000


@pytest.mark.parametrize("kind", actors.SHARED, ids=lambda kind: kind.name)
def test_nothing_is_lost_from_shares(kind: MapType) -> None:
    assert actors.run(kind, 1.0, shared=True)["operations"] > 100_000


@pytest.mark.parametrize("kind", ring_actors.FAMILIES, ids=lambda kind: kind.name)
def test_records_arrive_once_and_in_order(kind: MapType) -> None:
    assert ring_actors.run(kind, 1.0)["records"] > 100


@pytest.mark.parametrize("kind", program_actors.FAMILIES, ids=lambda kind: kind.name)
def test_programs_go_by_what_is_there(kind: MapType) -> None:
    assert program_actors.run(kind, 1.0)["runs"] > 10_000
