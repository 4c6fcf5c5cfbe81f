"""Clocks: compiled, interpreted and the kernel's tell the same time, one after the other."""

from __future__ import annotations

import time

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import RunState, compiled
from tests.xdp_runtime.oracle import interpret, one_program, packet_in
from xdp_runtime.helpers import by_name
from xdp_runtime.isa import Call, Exit, Imm, Mov, Reg, Store
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

CLOCKS = ["ktime_get_ns", "ktime_get_boot_ns", "ktime_get_coarse_ns", "ktime_get_tai_ns"]
TICKS_A_SECOND = (100, 250, 300, 1000)  # that a kernel may be built for


STATE = RunState(bytes(64), 0, 0, 64, 0, 64)


def read_compiled(name: str) -> int:
    template = by_name[name].template
    assert template is not None
    return compiled(template)(*[STATE.address] * by_name[name].needs_state)


@pytest.mark.parametrize("name", [*CLOCKS[1:], "jiffies64", "get_numa_node_id"])
def test_compiled_is_interpreted(name: str) -> None:
    helper = by_name[name]
    assert helper.interpret is not None
    before = helper.interpret(None)
    now = read_compiled(name)
    time.sleep(0.01)
    assert before <= now <= helper.interpret(None)


def test_jiffies_are_ticks_of_this_kernel() -> None:
    tick_ns = round(time.clock_getres(6) * 1e9)
    assert round(1e9 / tick_ns) in TICKS_A_SECOND
    begin, first = time.clock_gettime_ns(6), read_compiled("jiffies64")
    time.sleep(0.05)
    end, last = time.clock_gettime_ns(6), read_compiled("jiffies64")
    assert abs((last - first) - (end - begin) // tick_ns) <= (end - begin) // tick_ns + 2
    assert last > first


@pytest.mark.root
@needs_bpf()[1]
def test_jiffies_are_the_kernels() -> None:
    """To the tick, as soon as one is counted in time: other CPUs may be late with it."""
    insns = [*packet_in(6, 8), Call(by_name["jiffies64"].id), Store(6, 0, 8, Reg(0)),
             Mov(True, 0, Imm(2)), Exit()]
    obj, off = one_program(insns), []
    with load_into_kernel(obj) as theirs, load(obj) as ours:
        for _ in range(500):
            before, kernel, after, plain = (
                int.from_bytes(run.data_out[:8], "little") for run in (
                    ours.run(bytes(64)), theirs.run(bytes(64)), ours.run(bytes(64)),
                    interpret(insns)))
            assert before <= after <= plain
            off.append((before - kernel, after - kernel))
            if before == kernel == after == plain:
                break
            time.sleep(0.002)
    assert off[-1] == (0, 0), off


@pytest.mark.parametrize("name", CLOCKS)
class TestKernel:
    pytestmark = needs_bpf()

    def test_in_turns(self, name: str) -> None:
        """Ours, the kernel's, ours again."""
        insns = [*packet_in(6, 8), Call(by_name[name].id), Store(6, 0, 8, Reg(0)),
                 Mov(True, 0, Imm(2)), Exit()]
        with load_into_kernel(one_program(insns)) as program:
            times = [int.from_bytes(run.data_out[:8], "little") for run in (
                interpret(insns), program.run(bytes(64)), interpret(insns))]
        assert times == sorted(times)
