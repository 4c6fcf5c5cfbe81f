"""BPF_F_NO_COMMON_LRU: each worker, in the kernel each CPU, has its own share of the entries."""

from __future__ import annotations

import ctypes
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.loops import compile_loops
from tests.xdp_runtime.maps.test_lock import dead_pid
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime import bpf_syscall
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.hash_table import RECOUNT
from xdp_runtime.maps.lock import LOCK
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.pool import FRESH, LIVE, OWNER, SHARE_BYTES, SHARE_COUNT, SHARES_AT, places
from xdp_runtime.maps.share import SHARE_MAX
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

KINDS = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
sizes = pytest.mark.parametrize("share", [1, 16, 1000])  # of these the last has shards


def spec_of(kind: MapType, entries: int) -> MapSpec:
    return MapSpec("m", kind, 4, 8, entries, flags=MapFlag.NO_COMMON_LRU)


def key_of(n: int) -> bytes:
    return n.to_bytes(4, "little")


class Side(Protocol):
    def update(self, cpu: int, n: int, flags: int = 0) -> int: ...
    def delete(self, cpu: int, n: int) -> int: ...
    def content(self) -> set[int]: ...


class Ours:
    def __init__(self, one: Map) -> None:
        self.map = one

    def update(self, cpu: int, n: int, flags: int = 0) -> int:
        per_cpu = self.map.family.per_cpu
        return int(self.map._operation("update_all" if per_cpu else "update")(
            cpu, key_of(n), bytes(8 * self.map.workers), flags))

    def delete(self, cpu: int, n: int) -> int:
        return int(self.map._operation("delete")(cpu, key_of(n)))

    def content(self) -> set[int]:
        return {int.from_bytes(key, "little") for key in self.map}


class Kernels:
    """Each call by the CPU that it names."""

    def __init__(self, one: KernelMap) -> None:
        self.map = one

    def _by(self, cpu: int, call: Any) -> int:
        os.sched_setaffinity(0, {cpu})
        try:
            call()
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def update(self, cpu: int, n: int, flags: int = 0) -> int:
        return self._by(cpu, lambda: self.map.update(key_of(n), bytes(8), flags))

    def delete(self, cpu: int, n: int) -> int:
        return self._by(cpu, lambda: self.map.delete(key_of(n)))

    def content(self) -> set[int]:
        return {int.from_bytes(key, "little") for key, _ in self.map.items()}


@contextmanager
def side_of(where: str, kind: MapType, share: int) -> Iterator[tuple[Side, list[int]]]:
    """The map, and CPUs that a test may use: two at least."""
    count = bpf_syscall.possible_cpus() if where == "kernel" else 4
    spec = spec_of(kind, share * count - (count - 1 if share > 1 else 0))  # rounded up
    if where == "ours":
        with compiled_map(spec, count) as one:
            yield Ours(one), list(range(count))
        return
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two CPUs to run on")
    try:
        with KernelMap(spec) as kernel:
            yield Kernels(kernel), sorted(before)
    finally:
        os.sched_setaffinity(0, before)


both = pytest.mark.parametrize("where", ["ours", pytest.param("kernel", marks=[
    pytest.mark.root, needs_bpf()[1]])])


@both
@kinds
@sizes
def test_who_is_full_drops_its_own(where: str, kind: MapType, share: int) -> None:
    with side_of(where, kind, share) as (side, (first, second, *_)):
        others = set(range(10_000, 10_000 + share))
        assert not any(side.update(second, n) for n in others)
        for n in range(share):
            assert side.update(first, n) == 0
        assert side.content() == others | set(range(share))
        for n in range(share, 3 * share):
            assert side.update(first, n) == 0
            if n % 97 == 0:
                assert n in side.content()
        mine = side.content() - others
        assert side.content() >= others
        # the kernel drops up to four at a time (PERCPU_FREE_TARGET), and then has that many fewer
        assert share - 3 <= len(mine) <= share
        if where == "ours":
            newest = set(range(3 * share - share // 2, 3 * share))
            assert len(mine) == share and len(mine & newest) >= 0.9 * len(newest)
        if where == "kernel" or share < 1000:
            assert mine >= set(range(2 * share + 3, 3 * share))


@both
@kinds
@sizes
def test_what_others_delete_is_room(where: str, kind: MapType, share: int) -> None:
    with side_of(where, kind, share) as (side, (first, second, *_)):
        for n in range(share):
            assert side.update(first, n) == 0
        gone = set(range(0, share, 3))
        assert not any(side.delete(second, n) for n in gone)
        new = set(range(10_000, 10_000 + len(gone)))
        assert not any(side.update(first, n) for n in new)
        assert side.content() == new | set(range(share)) - gone


@both
@kinds
def test_who_writes_an_entry_has_it(where: str, kind: MapType) -> None:
    """An update of a hash's entry puts it into the share of who updates, that of a per-CPU map's
    leaves it where it is."""
    with side_of(where, kind, 64) as (side, (first, second, *_)):
        assert not any(side.update(first, n) for n in range(8))
        assert not any(side.update(second, n, 2) for n in range(8))
        owner, other = (second, first) if kind == MapType.LRU_HASH else (first, second)
        assert not any(side.update(other, n) for n in range(1000, 1300))
        assert side.content() >= set(range(8))
        assert 61 <= len(side.content()) - 8 <= 64
        assert not any(side.update(owner, n) for n in range(2000, 2300))
        assert 61 <= len(side.content() - set(range(1000, 1300))) <= 64


@both
@kinds
def test_refusals(where: str, kind: MapType) -> None:
    with side_of(where, kind, 16) as (side, (first, second, *_)):
        assert side.update(first, 1) == 0
        assert side.update(second, 1, 1) == -17
        assert side.update(second, 2, 2) == -2
        assert side.update(second, 2, 3) == -22
        assert side.delete(first, 2) == -2
        assert side.content() == {1}


@pytest.mark.root
@needs_bpf()[1]
@kinds
def test_same_as_kernel_while_shares_last(kind: MapType) -> None:
    """Random traces by all CPUs: result by result, and the contents at the end."""
    rng = random.Random(kind)
    with side_of("kernel", kind, 64) as (kernel, cpus), \
            compiled_map(spec_of(kind, 64 * (max(cpus) + 1)), max(cpus) + 1) as one:
        ours = Ours(one)
        for step in range(6000):
            n = rng.randrange(48)  # fewer than a share, wherever they go
            cpu = rng.choice(cpus)
            if rng.random() < 0.3:
                assert ours.delete(cpu, n) == kernel.delete(cpu, n), step
            else:
                flags = rng.choice((0, 0, 0, 1, 2))
                assert ours.update(cpu, n, flags) == kernel.update(cpu, n, flags), step
            if step % 200 == 0:
                assert ours.content() == kernel.content()
        assert ours.content() == kernel.content()


@pytest.mark.root
@needs_bpf()[1]
@kinds
def test_like_the_kernel_beyond_that(kind: MapType) -> None:
    """CPUs that have overflowed differ in what they drop, not in how much; no other loses any."""
    rng = random.Random(kind)
    share = 50
    with side_of("kernel", kind, share) as (kernel, cpus), \
            compiled_map(spec_of(kind, share * bpf_syscall.possible_cpus()),
                         bpf_syscall.possible_cpus()) as one:
        sides: list[Side] = [Ours(one), kernel]
        made: dict[int, list[int]] = {cpu: [] for cpu in cpus}
        for n in range(2000):
            cpu = cpus[0] if rng.random() < 0.9 else rng.choice(cpus[1:])
            if cpu != cpus[0] and len(made[cpu]) == share:
                continue
            made[cpu].append(n)
            assert [side.update(cpu, n, 1) for side in sides] == [0, 0]
        for side in sides:
            keys = side.content()
            assert all(keys >= set(made[cpu]) for cpu in cpus[1:])
            mine = keys & set(made[cpus[0]])
            assert share - 3 <= len(mine) <= share
            assert mine >= set(made[cpus[0]][3 - share:])


@pytest.mark.root
@needs_bpf()[1]
@kinds
def test_max_entries_is_rounded_up(kind: MapType) -> None:
    cpus = bpf_syscall.possible_cpus()
    for entries in (1, 7, 100, 5001):
        with KernelMap(spec_of(kind, entries)) as kernel, \
                Map.create(spec_of(kind, entries), cpus) as one:
            wanted = _max_entries(kernel.fd)
            assert one.max_entries == wanted == -(-entries // cpus) * cpus


def _max_entries(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(next(line for line in text.splitlines() if "max_entries" in line).split()[1])


def said_by_shares(one: Map) -> list[int]:
    head = one.memory("head")
    at = int.from_bytes(head[SHARES_AT:SHARES_AT + 4], "little")
    said = [int.from_bytes(head[at + SHARE_BYTES * w + SHARE_COUNT:][:4], "little")
            for w in range(one.workers)]
    head.release()
    return said


def counts(one: Map) -> tuple[list[int], list[int]]:
    """What the shares say they have, and what they have."""
    said = said_by_shares(one)
    head, elements = one.memory("head"), one.memory("elements")
    names = len([p for p in one.family.parameters(one.spec, one.workers) if isinstance(p, str)])
    parameters = one.family.parameters(one.spec, one.workers)
    stride, span = int(parameters[names + 2]), int(parameters[names + 5]) & 0xFFFFFFFF
    found = [0] * one.workers
    for number, place in enumerate(places(head)):
        fresh = int.from_bytes(head[place + FRESH:place + FRESH + 4], "little")
        for link in range(stride // 8 + number * span, fresh, stride // 8):
            if elements[8 * link + LIVE]:
                found[int.from_bytes(elements[8 * link + OWNER:][:2], "little")] += 1
    head.release()
    elements.release()
    return said, found


def _storm(m: Any) -> Any:
    update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
    delete = m.symbol("map.0.delete", "i64(i64, ptr)")

    def share_storm(worker, seed, rounds, keys):  # type: ignore
        key, value = m.gep(m.alloca(8), 0), m.gep(m.alloca(64), 0)
        m.zero(value, 64)
        state, wrong = seed, 0
        for _ in range(rounds):
            state = m.add(m.mul(state, 6364136223846793005), 1442695040888963407)
            m.store_u32(key, 0, m.urem(m.lshr(state, 33), keys))
            if m.lshr(state, 7) & 7 == 0:
                delete(worker, key)
            elif update(worker, key, value, 0) != 0:
                wrong += 1
        return wrong

    return share_storm


STORM = Template("share_storm", _storm, "i64(i64, i64, i64, i64)")


@kinds
@sizes
def test_all_at_once(kind: MapType, share: int) -> None:
    """Workers and one who is none: no share is ever passed, and the counts are right at the end."""
    with compiled_map(spec_of(kind, 4 * share), 4) as one:
        storm = compile_loops(one, STORM)["share_storm"]
        wrong = [0] * 5
        writers = range(5 if kind == MapType.LRU_HASH else 4)

        def run(worker: int) -> None:
            wrong[worker] = storm(worker, worker + 1, 150_000, 12 * share)

        threads = [threading.Thread(target=run, args=(worker,)) for worker in writers]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, *said_by_shares(one))
        for thread in threads:
            thread.join()
        assert most <= share + len(threads)  # an update counts the new before it gives the old back
        said, found = counts(one)
        assert said == found and max(found) <= share and wrong == [0] * 5
        assert sum(found) == len(one) == len(set(one))


@kinds
@sizes
def test_who_is_no_worker_fills_all_shares(kind: MapType, share: int) -> None:
    with compiled_map(spec_of(kind, 4 * share), 4) as one:
        value: Any = [bytes(8)] * 4 if one.family.per_cpu else bytes(8)
        for n in range(4 * share):
            one[key_of(n)] = value
            assert len(one) == n + 1
        assert counts(one) == ([share] * 4, [share] * 4)
        for n in range(4 * share):
            one.update(key_of(n), value, 2)
        assert len(one) == 4 * share
        one[key_of(10_000)] = value
        assert len(one) == 4 * share and key_of(10_000) in one


@kinds
@sizes
def test_a_count_that_a_process_took_with_it(kind: MapType, share: int, tmp_path: Path) -> None:
    """It died after counting an entry and before it could be found."""
    with Map.create(spec_of(kind, 3 * share), 3, tmp_path) as one:
        compile_operations(one)
        side = Ours(one)
        for n in range(share):
            side.update(1, n)
        head = one.memory("head")
        at = int.from_bytes(head[SHARES_AT:SHARES_AT + 4], "little") + SHARE_BYTES * 1
        most = ctypes.c_uint32.from_buffer(head, at + SHARE_MAX).value
        for doubt in (0, 1):  # whether anyone took its lock over, or not yet
            said = ctypes.c_uint32.from_buffer(head, at + SHARE_COUNT)
            said.value = most + 7
            ctypes.c_uint32.from_buffer(head, RECOUNT).value = doubt
            for place in places(head):
                ctypes.c_uint32.from_buffer(head, place + LOCK).value = dead_pid() * (1 - doubt)
            del said
            for n in range(1000 + 5000 * doubt, 1000 + 5000 * doubt + 3 * share):
                assert side.update(1, n) == 0
            assert counts(one) == ([0, share, 0], [0, share, 0])
        head.release()


@kinds
def test_one_worker_has_all(kind: MapType) -> None:
    with compiled_map(spec_of(kind, 10), 1) as one:
        for n in range(30):
            Ours(one).update(0, n)
        assert Ours(one).content() == set(range(20, 30))
