"""bpf_xdp_metadata_rx_timestamp, _hash and _vlan_tag: what the port knows of a packet.

In the kernel they are functions that the driver fills in, for programs bound to a device; where it
has none they return -EOPNOTSUPP and write nothing, and so they do here unless the port has set the
fields of the run state (state.py, RX_KNOWN), or the error that its driver returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.isa import Call
from xdp_runtime.object import Object
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]
EOPNOTSUPP = 95


def _why(m: Any) -> Factory:
    def rx_why(known, at):  # type: ignore
        """Why it is not known."""
        error = m.lshr(known, at) & 0xFF
        return -error if error != 0 else -EOPNOTSUPP

    return rx_why


WHY = Template("rx_why", _why, "i64(i64, i64)")


def _timestamp(m: Any) -> Factory:
    why = m.extern(WHY)

    def rx_timestamp(run, timestamp):  # type: ignore
        known = m.load_u32(run, state.RX_KNOWN)
        if known & state.KNOWS_TIMESTAMP == 0:
            return why(known, state.RX_ERRORS_AT)
        m.store_u64(timestamp, 0, m.load_u64(run, state.RX_TIMESTAMP))
        return 0

    return rx_timestamp


def _hash(m: Any) -> Factory:
    why = m.extern(WHY)

    def rx_hash(run, number, kind):  # type: ignore
        known = m.load_u32(run, state.RX_KNOWN)
        if known & state.KNOWS_HASH == 0:
            return why(known, state.RX_ERRORS_AT + 8)
        m.store_u32(number, 0, m.load_u32(run, state.RX_HASH))
        m.store_u32(kind, 0, m.load_u32(run, state.RX_HASH_TYPE))
        return 0

    return rx_hash


def _vlan(m: Any) -> Factory:
    why = m.extern(WHY)

    def rx_vlan_tag(run, protocol, tci):  # type: ignore
        known = m.load_u32(run, state.RX_KNOWN)
        if known & state.KNOWS_VLAN == 0:
            return why(known, state.RX_ERRORS_AT + 16)
        m.store_u16(protocol, 0, m.load_u16(run, state.RX_VLAN_PROTO))
        m.store_u16(tci, 0, m.load_u16(run, state.RX_VLAN_TCI))
        return 0

    return rx_vlan_tag


def _interpret_timestamp(machine: Machine, ctx: Pointer, timestamp: Pointer) -> int:
    known = machine.metadata.timestamp_ns
    if known is None:
        return -EOPNOTSUPP
    timestamp.write(known.to_bytes(8, "little"))
    return 0


def _interpret_hash(machine: Machine, ctx: Pointer, number: Pointer, kind: Pointer) -> int:
    known = machine.metadata.hash
    if known is None:
        return -EOPNOTSUPP
    number.write(known[0].to_bytes(4, "little"))
    kind.write(known[1].to_bytes(4, "little"))
    return 0


def _interpret_vlan(machine: Machine, ctx: Pointer, protocol: Pointer, tci: Pointer) -> int:
    known = machine.metadata.vlan
    if known is None:
        return -EOPNOTSUPP
    protocol.write(known[0].to_bytes(2, "big"))
    tci.write(known[1].to_bytes(2, "little"))
    return 0


def _helper(name: str, interpret: Callable[..., int], factory: Callable[[Any], Factory],
            *sizes: int) -> Helper:
    return Helper(KERNEL_FUNCTIONS[f"bpf_{name}"], name,
                  (Arg.CTX, *[Arg.FIXED_UNINIT] * len(sizes)), Ret.SCALAR, interpret,
                  Template(name, factory, f"i64({', '.join(['ptr'] * (1 + len(sizes)))})", (WHY,)),
                  sizes=tuple(enumerate(sizes, 2)), packet=True)


HELPERS = (
    _helper("xdp_metadata_rx_timestamp", _interpret_timestamp, _timestamp, 8),
    _helper("xdp_metadata_rx_hash", _interpret_hash, _hash, 4, 4),
    _helper("xdp_metadata_rx_vlan_tag", _interpret_vlan, _vlan, 2, 2),
)


def asked_by(obj: Object) -> bool:
    """Does a program of it call one of these?"""
    numbers = {helper.id for helper in HELPERS}
    return any(isinstance(insn, Call) and insn.helper in numbers
               for program in obj.programs for insn in program.insns)
