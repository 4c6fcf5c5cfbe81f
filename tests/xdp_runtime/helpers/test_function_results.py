"""All of r0 after kernel functions: an int, and zeros above, in all engines and the kernel."""

from __future__ import annotations

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import interpret, one_program, packet_in
from xdp_runtime.compiler import target
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import Alu, AluOp, Call, Exit, Imm, Insn, Mov, Reg, Store
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load


def place(register: int, off: int) -> list[Insn]:
    return [Mov(True, register, Reg(10)), Alu(AluOp.ADD, True, register, Imm(off))]


def call(name: str, *numbers: tuple[int, int]) -> list[Insn]:
    return [*(Mov(True, register, Imm(value)) for register, value in numbers),
            Call(KERNEL_FUNCTIONS[f"bpf_{name}"])]


NULL = [Mov(True, 1, Reg(7)), *place(3, -16), *call("dynptr_from_xdp", (2, 1))]  # flags: refused
CALLS: dict[str, list[Insn]] = {
    "from_xdp": NULL,
    "adjust": [*NULL, *place(1, -16), *call("dynptr_adjust", (2, 5), (3, 1))],
    "size": [*NULL, *place(1, -16), *call("dynptr_size")],
    "is_rdonly": [*NULL, *place(1, -16), *call("dynptr_is_rdonly")],
    "clone": [*NULL, *place(1, -16), *place(2, -32), *call("dynptr_clone")],
    "copy": [*NULL, *place(1, -16), *place(3, -16), *call("dynptr_copy", (2, 0), (4, 0), (5, 4))],
    "memset": [*NULL, *place(1, -16), *call("dynptr_memset", (2, 0), (3, 3), (4, 0))],
    "strchr": [Store(10, -8, 8, Imm(0)), *place(1, -8), *call("strchr", (2, 5))],
    "strcmp": [Store(10, -8, 8, Imm(0)), Store(10, -16, 8, Imm(65)), *place(1, -8), *place(2, -16),
               *call("strcmp")],
    "iter_num_new": [*place(1, -8), *call("iter_num_new", (2, 5), (3, 1)), Mov(True, 8, Reg(0)),
                     *place(1, -8), *call("iter_num_destroy"), Mov(True, 0, Reg(8))],
}


def program(name: str) -> list[Insn]:
    return [Mov(True, 7, Reg(1)), *packet_in(6, 16), *CALLS[name], Store(6, 0, 8, Reg(0)),
            Mov(True, 0, Imm(2)), Exit()]


@pytest.mark.parametrize("name", CALLS)
def test_compiled_is_interpreted(name: str) -> None:
    expected = interpret(program(name)).data_out
    assert expected[4:8] == bytes(4) and (expected[:4] != bytes(4) or name == "is_rdonly")
    for opt in target.TESTED:
        with load(one_program(program(name)), opt=opt) as made:
            assert made.run(bytes(64)).data_out == expected


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("name", CALLS)
def test_kernel(name: str) -> None:
    with load_into_kernel(one_program(program(name))) as made:
        assert made.run(bytes(64)).data_out == interpret(program(name)).data_out
