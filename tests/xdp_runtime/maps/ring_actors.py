"""Four workers and a second process on one ring: each record arrives once, whole, and in order.

    python -m tests.xdp_runtime.maps.ring_actors [--seconds 30] [FAMILY...]

A record is (who, its number, a word derived from both).  Workers write into a RINGBUF or a
PERF_EVENT_ARRAY and the other process consumes; it produces into a USER_RINGBUF and all workers
drain, one at a time.  Whoever finds no room tries again with the same number.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.xdp_runtime.compiled import RunState
from tests.xdp_runtime.maps.loops import compile_loops
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.user_ringbuf import DRAIN_BYTES
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.template import Template

WORKERS, RING_BYTES, RECORD_BYTES = 4, 1 << 16, 24
FAMILIES = (MapType.RINGBUF, MapType.PERF_EVENT_ARRAY, MapType.USER_RINGBUF)
_C = 0x9E3779B97F4A7C15 - (1 << 64)
_U64 = (1 << 64) - 1
SENT, FULL, WRONG, DRAINED = range(4)  # u64 each
_HERE = "tests.xdp_runtime.maps.ring_actors"


def _record(who: int, number: int) -> bytes:
    return b"".join(word.to_bytes(8, "little")
                    for word in (who, number, (number * _C ^ who) & _U64))


def _writer(kind: MapType) -> Template:
    events = kind == MapType.PERF_EVENT_ARRAY

    def factory(m: Any) -> Any:
        if events:
            perf = m.symbol("map.0.perf_output", "i64(i64, ptr, i64, ptr, i64)")
        else:
            output = m.symbol("map.0.output", "i64(i64, ptr, i64, i64)")

        def ring_actor(counts, run, me, rounds):  # type: ignore
            record = m.gep(m.alloca(RECORD_BYTES), 0)
            for _ in range(rounds):
                number = m.load_u64(counts, 0)
                m.store_u64(record, 0, me)
                m.store_u64(record, 8, number)
                m.store_u64(record, 16, m.mul(number, _C) ^ me)
                if events:
                    status = perf(me, run, 0xFFFFFFFF, record, RECORD_BYTES)
                else:
                    status = output(me, record, RECORD_BYTES, 0)
                if status == 0:
                    m.store_u64(counts, 0, number + 1)
                else:
                    m.store_u64(counts, 8, m.load_u64(counts, 8) + 1)
            return 0

        return ring_actor

    return Template(f"ring_actor_{kind.name.lower()}", factory, "i64(ptr, ptr, i64, i64)")


def _drainer(m: Any) -> Any:
    begin = m.symbol("map.0.drain_begin", "i64(i64, ptr, i64)")
    following = m.symbol("map.0.drain", "i64(i64, ptr, i64)")

    def ring_drainer(counts, shared, me, rounds):  # type: ignore
        """`shared`: the number that comes next, which whoever drains alone may look at."""
        drain = m.gep(m.alloca(DRAIN_BYTES), 0)
        for _ in range(rounds):
            if begin(me, drain, 0) != 0:
                m.store_u64(counts, 8, m.load_u64(counts, 8) + 1)
                continue
            while following(me, drain, 0) != 0:
                record = m.load_ptr(drain, 0)
                number = m.load_u64(shared, 0)
                wrong = m.load_u64(record, 0) ^ WORKERS
                wrong |= m.load_u64(record, 8) ^ number
                wrong |= m.load_u64(record, 16) ^ m.mul(number, _C) ^ WORKERS
                if wrong != 0:
                    m.store_u64(counts, 16, m.load_u64(counts, 16) + 1)
                m.store_u64(shared, 0, number + 1)
                m.store_u64(counts, 24, m.load_u64(counts, 24) + 1)
        return 0

    return ring_drainer


DRAINER = Template("ring_drainer", _drainer, "i64(ptr, ptr, i64, i64)")


class Reader:
    """What a consumer saw of each writer: how many, and whether it was what came next."""

    def __init__(self, seen: Iterable[int] = (0,) * WORKERS) -> None:
        self.seen, self.wrong = list(seen), 0

    def take(self, records: Iterable[bytes]) -> None:
        for raw in records:
            who = int.from_bytes(raw[:8], "little")
            if who >= WORKERS or raw != _record(who, self.seen[who]):
                self.wrong += 1
            else:
                self.seen[who] += 1


def _other(path: Path) -> None:
    """The second process, until its input ends: consumes, or produces."""
    reader, sent, full, over = Reader(), 0, 0, threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    with Map.open(path) as one:
        print("ready", flush=True)
        while not over.is_set():
            if one.spec.type != MapType.USER_RINGBUF:
                reader.take(one.consume())
                continue
            try:
                one.produce(_record(WORKERS, sent))
                sent += 1
            except OSError:
                full += 1
    print(json.dumps([reader.seen, reader.wrong, sent, full]))


def run(kind: MapType, seconds: float) -> dict[str, int]:
    """Raises AssertionError for what was lost, came twice, torn or in another order."""
    spec = (MapSpec("m", kind, 4, 4, 0) if kind == MapType.PERF_EVENT_ARRAY
            else MapSpec("m", kind, 0, 0, RING_BYTES))
    with (tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
          Map.create(spec, WORKERS, Path(folder)) as one):
        template = DRAINER if kind == MapType.USER_RINGBUF else _writer(kind)
        work = compile_loops(one, template)[template.name]
        other = subprocess.Popen([sys.executable, "-m", _HERE, "--other", str(Path(folder) / "m")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        counts = [(ctypes.c_uint64 * 16)() for _ in range(WORKERS)]
        shared, state = ctypes.c_uint64(), RunState(bytes(64), 0, 0, 64, 0, 64)
        second = (ctypes.addressof(shared) if kind == MapType.USER_RINGBUF else state.address)
        over = threading.Event()

        def act(me: int) -> None:
            while not over.is_set():
                work(ctypes.addressof(counts[me]), second, me, 10_000)

        threads = [threading.Thread(target=act, args=(me,)) for me in range(WORKERS)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        over.set()
        for thread in threads:
            thread.join()
        text, _ = other.communicate(timeout=600)
        assert other.returncode == 0
        seen, wrong, produced, full = json.loads(text)
        total = [sum(one[n] for one in counts) for n in range(4)]
        if kind == MapType.USER_RINGBUF:
            work(ctypes.addressof(counts[0]), second, 0, 1)  # what is left
            drained = sum(one[DRAINED] for one in counts)
            assert drained == produced == shared.value, (drained, produced)
            assert not sum(one[WRONG] for one in counts)
            assert produced
            return {"records": produced, "full": full, "busy": total[FULL]}
        reader = Reader(seen)
        reader.take(one.consume())
        assert not wrong + reader.wrong
        assert reader.seen == [one[SENT] for one in counts]
        assert sum(seen)
        return {"records": total[SENT], "full": total[FULL]}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", default=[kind.name for kind in FAMILIES])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--other")
    args = parser.parse_args()
    if args.other:
        _other(Path(args.other))
        return 0
    for name in args.families:
        found = run(MapType[name], args.seconds)
        print(f"{name}: {found} in {args.seconds:g} s, {os.cpu_count()} CPUs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
