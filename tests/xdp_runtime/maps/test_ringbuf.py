"""RINGBUF and PERF_EVENT_ARRAY: records come out as they went in, and when they must not."""

from __future__ import annotations

import ctypes
import platform
import random
import resource
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import RunState
from tests.xdp_runtime.maps.loops import compile_loops
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps import ringbuf
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.template import Template

EINVAL, E2BIG, EAGAIN, EFAULT, ENOSPC, EOPNOTSUPP = -22, -7, -11, -14, -28, -95


def a_ring(size: int = 4096) -> MapSpec:
    return MapSpec("r", MapType.RINGBUF, 0, 0, size)


def commit_loop(m: Any) -> Callable[..., Any]:
    commit = m.extern(ringbuf.COMMIT)

    def test_commit(record, flags, discard):  # type: ignore
        return commit(record, flags, discard)

    return test_commit


COMMIT = Template("test_commit", commit_loop, "i64(ptr, i64, i64)", (ringbuf.COMMIT,))


def output(one: Map, data: bytes, flags: int = 0) -> int:
    return int(one._operation("output")(0, data, len(data), flags))


def readable(one: Map) -> bool:
    return bool(select.select([one], [], [], 0)[0])


def test_records_in_order_and_around_the_end() -> None:
    rng = random.Random(1)
    with compiled_map(a_ring()) as one:
        waiting: list[bytes] = []
        room = 4096
        for _ in range(4000):
            data = rng.randbytes(rng.randrange(1, 700))
            need = (len(data) + 7 & ~7) + 8
            # one byte less than the ring, as in the kernel
            expected = 0 if room - need >= 1 else EAGAIN
            assert output(one, data, rng.choice((0, 1, 2))) == expected
            if expected == 0:
                waiting.append(data)
                room -= need
            if rng.random() < 0.2:
                assert one.consume() == waiting
                waiting, room = [], 4096
        assert one.consume() == waiting and one.consume() == []
        assert one.lost > 0
        assert output(one, b"x", 4) == EINVAL
        assert output(one, bytes(4096)) == EAGAIN


@pytest.mark.skipif(tuple(map(int, platform.release().split(".")[:2])) < (5, 14),
                    reason="the kernel has no MADV_POPULATE_WRITE, which came with 5.14")
def test_no_record_waits_for_a_page() -> None:
    with Map.create(a_ring(1 << 20), 1) as one:
        memory = one.memory("ring")
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for at in range(ringbuf.DATA, len(memory), ringbuf.PAGE):
            memory[at] = 1
        taken = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
        memory.release()
    assert taken < 64  # of 512 pages, both views


def test_query() -> None:
    with compiled_map(a_ring(8192)) as one:
        query = one._operation("query")
        for _ in range(3):
            output(one, bytes(20))
        assert [query(0, what) for what in range(5)] == [96, 8192, 0, 96, 0]
        one.consume()
        assert [query(0, what) for what in range(4)] == [0, 8192, 96, 96]


def test_reserve_submit_and_discard() -> None:
    with Map.create(a_ring(), 1) as one:
        commit = compile_loops(one, COMMIT)["test_commit"]
        reserve = one._operation("reserve")
        assert not reserve(0, 8, 1), "flags are not allowed"
        assert not reserve(0, 5000, 0) and not reserve(0, -1, 0)
        first, second, third = (reserve(0, size, 0) for size in (16, 24, 3))
        ctypes.memset(first, 1, 16)
        ctypes.memset(second, 2, 24)
        ctypes.memset(third, 3, 3)
        commit(second, 0, 0)
        assert one.consume() == [], "the first is not committed"
        commit(first, 0, ringbuf.DISCARD)
        assert one.consume() == [b"\2" * 24]
        commit(third, 0, 0)
        assert one.consume() == [b"\3\3\3"]
        # what is reserved for long keeps the ring from being written around it
        held = reserve(0, 8, 0)
        taken = 0
        while reserve_at := reserve(0, 1000, 0):
            commit(reserve_at, 0, 0)
            taken += 1
        assert taken == 4 and one.consume() == []
        assert not reserve(0, 1000, 0)
        commit(held, 0, 0)
        assert len(one.consume()) == 5 and reserve(0, 1000, 0)


def test_wakeup() -> None:
    with compiled_map(a_ring()) as one:
        assert readable(one), "there might have been records before"
        assert one.consume() == [] and not readable(one)
        output(one, b"a")
        assert readable(one) and one.consume() == [b"a"] and not readable(one)
        output(one, b"b", ringbuf.NO_WAKEUP)
        assert not readable(one)
        output(one, b"c")
        assert not readable(one), "the consumer was told of neither, and is not here"
        output(one, b"d", ringbuf.FORCE_WAKEUP)
        assert readable(one) and one.consume() == [b"b", b"c", b"d"]
        for _ in range(100):  # far around the end
            output(one, bytes(600))
            assert readable(one) and len(one.consume()) == 1 and not readable(one)


def test_a_record_that_came_while_others_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was committed before the position was written and woke nobody: the reader looks again."""
    real = ringbuf.consume

    def interrupted(memory: memoryview, start: int, size: int) -> list[bytes]:
        position = slice(start + ringbuf.CONSUMER, start + ringbuf.CONSUMER + 8)
        before = bytes(memory[position])
        records = real(memory, start, size)
        after = bytes(memory[position])
        memory[position] = before
        output(one, b"late")
        memory[position] = after
        return records

    with compiled_map(a_ring()) as one:
        assert readable(one)
        output(one, b"a")
        monkeypatch.setattr(ringbuf, "consume", interrupted)
        assert one.consume() == [b"a"] and readable(one)
        monkeypatch.undo()
        assert one.consume() == [b"late"] and not readable(one)


def test_many_writers_one_reader() -> None:
    with compiled_map(a_ring(1 << 16)) as one:
        operation = one._operation("output")

        def write(writer: int) -> None:
            for number in range(5000):
                data = writer.to_bytes(4, "little") + number.to_bytes(4, "little") * (
                    1 + number % 9)
                while operation(0, data, len(data), 0) == EAGAIN:
                    pass

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        seen: list[list[int]] = [[], [], [], []]
        while sum(map(len, seen)) < 20000:
            assert select.select([one], [], [], 60)[0], "records wait, and nobody was woken"
            for record in one.consume():
                number = int.from_bytes(record[4:8], "little")
                assert record[4:] == number.to_bytes(4, "little") * (1 + number % 9)
                seen[int.from_bytes(record[:4], "little")].append(number)
        for thread in threads:
            thread.join()
        assert all(numbers == list(range(5000)) for numbers in seen)


def test_perf_output() -> None:
    spec = MapSpec("e", MapType.PERF_EVENT_ARRAY, 4, 4, 0)
    with compiled_map(spec, 2) as one:
        run = RunState(bytes(range(100)), 0, 0, 100, 0, 100)
        current = 0xFFFFFFFF

        def perf(worker: int, flags: int, data: bytes) -> int:
            return int(one._operation("perf_output")(worker, run.address, flags, data, len(data)))

        assert perf(0, current, b"zero") == 0
        assert perf(1, current | 10 << 32, b"one") == 0
        assert perf(1, 1, b"by number") == 0
        assert perf(1, 0, b"") == EOPNOTSUPP
        assert perf(1, 2, b"") == E2BIG
        assert perf(1, current | 101 << 32, b"") == EFAULT
        assert perf(1, current | 1 << 52, b"") == EINVAL
        assert one.consume() == [b"zero", b"one" + bytes(range(10)), b"by number"]
        status, written = 0, 0
        while status == 0:
            status = perf(0, current, bytes(1000))
            written += status == 0
        assert status == ENOSPC and len(one.consume()) == written > 200 and one.lost == 1
        assert perf(0, current, b"again") == 0 and one.consume() == [b"again"]


@pytest.mark.parametrize("spec", [
    a_ring(0), a_ring(100), a_ring(4096 * 3), MapSpec("r", MapType.RINGBUF, 4, 0, 4096),
    MapSpec("r", MapType.RINGBUF, 0, 4, 4096), MapSpec("r", MapType.RINGBUF, 0, 0, 4096, flags=1),
], ids=str)
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    with pytest.raises(LoadError):
        KernelMap(spec)
    with pytest.raises(LoadError):
        Map.create(spec, 1)
