"""Time, chance, the worker's number: compiled against what they promise; and the table itself."""

from __future__ import annotations

import struct
import time

import pytest

from tests.xdp_runtime.compiled import RunState, compiled
from xdp_runtime import state
from xdp_runtime.helpers import HELPERS, by_name, kernel_name
from xdp_runtime.helpers.core import next_random
from xdp_runtime.helpers.proto import Arg, Helper, Ret


def a_run() -> RunState:
    return RunState(bytes(64), 0, 0, 64, 0, 64)


def test_ktime() -> None:
    template = by_name["ktime_get_ns"].template
    assert template is not None
    read = compiled(template)
    before_ns = time.monotonic_ns()
    times = [read() for _ in range(100)]
    assert before_ns <= times[0] and times[-1] <= time.monotonic_ns()
    assert times == sorted(times)


@pytest.mark.parametrize("seed", [0, 1, 0x8000_0000_0000_0000, 0xDEAD_BEEF_0BAD_CAFE])
def test_random_is_interpreted(seed: int) -> None:
    template, run = by_name["get_prandom_u32"].template, a_run()
    assert template is not None
    struct.pack_into("=Q", run.worker, state.W_PRNG, seed)
    numbers = []
    for _ in range(1000):
        seed, expected = next_random(seed)
        numbers.append(compiled(template)(run.address))
        assert numbers[-1] == expected
    assert len(set(numbers)) > 990 and all(0 <= n < 1 << 32 for n in numbers)


def test_worker_number() -> None:
    template, run = by_name["get_smp_processor_id"].template, a_run()
    assert template is not None
    run.put(state.WORKER_ID, 4, 77)
    assert compiled(template)(run.address) == 77


@pytest.mark.parametrize("helper", HELPERS.values(), ids=lambda helper: helper.name)
def test_prototype_and_template_agree(helper: Helper) -> None:
    assert kernel_name(helper.id) == f"bpf_{helper.name}"
    for n, kind in enumerate(helper.args):
        if kind in (Arg.MEM, Arg.MEM_OR_NULL, Arg.MEM_UNINIT):
            assert helper.args[n + 1] in (Arg.SIZE, Arg.SIZE_OR_ZERO)
    if helper.template is None:
        assert helper.interpret is not None or not helper.runs
        return
    pointers = (Arg.CTX, Arg.MEM, Arg.MEM_OR_NULL, Arg.MEM_UNINIT, Arg.MAP_KEY, Arg.MAP_VALUE,
                Arg.MAP_VALUE_UNINIT, Arg.MEM_UNINIT_OR_NULL, Arg.FIXED, Arg.FIXED_UNINIT,
                Arg.CONST_TEXT, Arg.RECORD, Arg.DYNPTR, Arg.DYNPTR_UNINIT, Arg.DYNPTR_RELEASE,
                Arg.SPIN_LOCK, Arg.ITERATOR, Arg.ITERATOR_UNINIT, Arg.IRQ_FLAGS,
                Arg.IRQ_FLAGS_UNINIT, Arg.BUFFER_OR_NULL)
    expected = []
    for kind in helper.args:
        if kind is Arg.STRING:
            expected += ["ptr", "i64"]
        elif kind is not Arg.MAP:
            expected.append("ptr" if kind in pointers else "i64")
    assert list(helper.template.parameters) == ["ptr"] * helper.needs_state + expected
    assert helper.template.result == ("ptr" if helper.ret is Ret.DATA_OR_NULL else "i64")


def test_names() -> None:
    assert kernel_name(1) == "bpf_map_lookup_elem"
    assert kernel_name(69) == "bpf_fib_lookup"
    assert kernel_name(211) == "bpf_cgrp_storage_delete"
    assert "unknown" in kernel_name(212) and "unknown" in kernel_name(0)
