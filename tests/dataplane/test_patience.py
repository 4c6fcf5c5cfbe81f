"""dataplane.patience: searches grow while they pay, end where they do not, and are tried again."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from dataplane import patience
from xdp_runtime.compiler import target, templates

_C = {"i64": ctypes.c_int64, "ptr": ctypes.c_void_p}
_code: list[Any] = []


@cache
def compiled() -> dict[str, Callable[..., int]]:
    four = {"start": patience.START, "lasts": patience.LASTS, "paid": patience.PAID,
            "slept": patience.SLEPT}
    text, exports = "", [f"test_{name}" for name in four]
    for name, template in four.items():
        kinds = ", ".join(template.parameters)
        args = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(template.parameters))
        text += (f"declare i64 @{template.name}({kinds})\ndefine i64 @test_{name}({args}) {{\n"
                 f"  %r = call i64 @{template.name}({args})\n  ret i64 %r\n}}\n")
    module = target.link(text, [templates.bitcode(t) for t in templates.closure(four.values())],
                         exports)
    target.optimise(module)
    code = target.Code(target.emit_object(module), {}, exports)
    _code.append(code)  # the functions do not keep it alive
    return {name: code.function(f"test_{name}", ctypes.c_int64, *(_C[p] for p in t.parameters))
            for name, t in four.items()}


class Worker:
    """Time as the test has it: `now_ns`."""

    def __init__(self) -> None:
        self._memory = (ctypes.c_uint64 * (patience.PATIENCE_BYTES // 8))()
        self._at, self._calls, self.now_ns = ctypes.addressof(self._memory), compiled(), 1
        self._calls["start"](self._at)

    @property
    def spin(self) -> int:
        return self._memory[patience.SPIN // 8]

    def search(self, until: int = 1 << 20) -> int:
        """Rounds without a packet until it would sleep."""
        for rounds in range(1, until):
            self.now_ns += 50
            if not self._calls["lasts"](self._at, rounds, self.now_ns):
                return rounds
        return until

    def find(self, after_ns: int = 50) -> None:
        self.now_ns += after_ns
        self._calls["paid"](self._at, self.now_ns)

    def sleep(self, is_woken: bool = True) -> None:
        self.search()
        self._calls["slept"](self._at, int(is_woken))


def test_a_search_is_as_long_as_said() -> None:
    worker = Worker()
    assert worker.search() == worker.spin == patience.SPIN_FIRST


def test_sleeps_that_packets_end_make_it_longer() -> None:
    worker = Worker()
    for _ in range(6):
        worker.sleep()
    assert worker.spin == patience.SPIN_MOST
    for _ in range(1000):  # packets that are found keep it so
        worker.search(10)
        worker.find()
        worker.sleep()
        worker.find()
    assert worker.spin == patience.SPIN_MOST


def test_sleeps_that_time_ends_make_it_shorter() -> None:
    worker = Worker()
    for _ in range(6):
        worker.sleep()
    for _ in range(10):
        worker.sleep(is_woken=False)
    assert worker.spin == patience.SPIN_FIRST


def test_in_vain_it_ends_and_is_tried_ever_more_seldom() -> None:
    worker = Worker()
    spins = []
    for _ in range(5000):
        worker.sleep()
        spins.append(worker.spin)
    tries = [i for i, spin in enumerate(spins) if spin == patience.SPIN_FIRST]
    gaps = [b - a for a, b in pairwise(tries)]
    assert gaps == sorted(gaps) and gaps[0] > patience.PAUSE_FIRST and gaps[-1] > 10 * gaps[0]
    assert spins.count(patience.SPIN_LEAST) > 0.95 * len(spins)


def test_what_came_while_the_cpu_was_away_was_not_found() -> None:
    worker = Worker()
    worker.sleep()
    worker.search(10)
    worker.find(after_ns=patience.TAKEN_NS + 1)
    assert worker.search() == patience.SPIN_LEAST
    worker.sleep()
    assert worker.spin == patience.SPIN_LEAST


@pytest.mark.parametrize("found", [2, 100])
def test_packets_that_are_found_after_all_bring_it_back(found: int) -> None:
    worker = Worker()
    for _ in range(200):
        worker.sleep()
    assert worker.spin == patience.SPIN_LEAST
    for _ in range(20):
        for _ in range(found):
            worker.search(2)  # rounds: shorter than any search
            worker.find()
        worker.sleep()
    assert worker.spin == patience.SPIN_MOST
