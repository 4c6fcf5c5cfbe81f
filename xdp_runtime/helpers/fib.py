"""bpf_fib_lookup and bpf_check_mtu: what the host would do with a packet (xdp_runtime/fib/)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdp_runtime import state
from xdp_runtime.fib.lookup import CHECK_MTU, FIB_LOOKUP
from xdp_runtime.fib.model import check_mtu, fib_lookup
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.interp_memory import Context
from xdp_runtime.isa import Call
from xdp_runtime.object import Object

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer


def _interpret_fib_lookup(machine: Machine, ctx: Pointer, params: Pointer, size: int,
                          flags: int) -> int:
    struct = bytearray(params.read(size))
    code = fib_lookup(machine.host, struct, flags & 0xFFFFFFFF)
    params.write(bytes(struct))
    return code


def _interpret_check_mtu(machine: Machine, ctx: Pointer, ifindex: int, length: Pointer,
                         difference: int, flags: int) -> int:
    packet = machine.packet
    given = int.from_bytes(length.read(4), "little")
    assert isinstance(ctx.region, Context)
    ingress = ctx.region.numbers.get(state.INGRESS_IFINDEX, 0)
    code, mtu = check_mtu(machine.host, ingress, packet.data_end - packet.data,
                          ifindex & 0xFFFFFFFF, given, difference & 0xFFFFFFFF, flags)
    length.write(mtu.to_bytes(4, "little"))
    return code


HELPERS = (
    # struct bpf_fib_lookup is read and written
    Helper(69, "fib_lookup", (Arg.CTX, Arg.MEM_UNINIT, Arg.SIZE, Arg.ANYTHING), Ret.SCALAR,
           _interpret_fib_lookup, FIB_LOOKUP, gpl_only=True),
    Helper(163, "check_mtu",
           (Arg.CTX, Arg.ANYTHING, Arg.FIXED_UNINIT, Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR,
           _interpret_check_mtu, CHECK_MTU, sizes=((3, 4),), gpl_only=True),
)


def asks_host(obj: Object) -> bool:
    """Does a program of this object look into the host's tables?"""
    numbers = {helper.id for helper in HELPERS}
    return any(isinstance(insn, Call) and insn.helper in numbers
               for program in obj.programs for insn in program.insns)
