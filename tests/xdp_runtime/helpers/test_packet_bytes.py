"""xdp_load_bytes, xdp_store_bytes, xdp_get_buff_len: compiled as interpreted."""

from __future__ import annotations

import ctypes

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xdp_runtime.compiled import RunState, compiled
from tests.xdp_runtime.oracle import one_program
from xdp_runtime.helpers import by_name
from xdp_runtime.helpers.proto import Helper
from xdp_runtime.interp import Machine, Pointer
from xdp_runtime.interp_memory import Region
from xdp_runtime.isa import Exit, Imm, Mov
from xdp_runtime.template import Template

U64 = (1 << 64) - 1
_OBJ = one_program([Mov(True, 0, Imm(0)), Exit()])
OFFSETS = st.integers(0, 80) | st.sampled_from((0xFFFF, 0x10000, 1 << 32, U64, 0xFFFFFFFF))
SIZES = st.integers(1, 80)


def template_of(helper: Helper) -> Template:
    assert helper.template is not None
    return helper.template


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(min_size=14, max_size=70), OFFSETS, SIZES, st.booleans())
def test_same_as_interpreted(packet: bytes, offset: int, size: int, load: bool) -> None:
    helper = by_name["xdp_load_bytes" if load else "xdp_store_bytes"]
    assert helper.interpret is not None
    machine = Machine(_OBJ, _OBJ.programs[0])
    machine._begin(packet, b"", {}, 256, None)
    run = RunState(packet, 0, 0, len(packet), 0, len(packet))
    given = bytes(range(100, 100 + size))
    buffer = ctypes.create_string_buffer(given, size)
    memory = Region("m", bytearray(given), 0, size, 0)
    if load:
        expected = helper.interpret(machine, None, offset, Pointer(memory, 0), size)
    else:
        expected = helper.interpret(machine, None, offset, given, size)
    found = compiled(template_of(helper))(run.address, offset, ctypes.addressof(buffer), size)
    assert found == expected & U64
    assert buffer.raw == bytes(memory.data)
    own = machine.packet
    assert run.frame.raw == bytes(own.frame[own.data:own.data_end])
    length = by_name["xdp_get_buff_len"]
    assert length.interpret is not None
    assert compiled(template_of(length))(run.address) == length.interpret(machine, None)
