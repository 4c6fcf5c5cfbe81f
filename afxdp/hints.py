"""RX metadata: what the driver knows of a packet beside its bytes, for programs that ask for it.

bpf_xdp_metadata_rx_timestamp and its like are the driver's own functions, for XDP programs bound to
its device.  The program in user space is not in the driver, so the redirect program asks on its
behalf and leaves the answers in the 32 bytes in front of the packet, where AF_XDP carries them into
the umem:

    u64 timestamp | u32 hash, its type | u16 VLAN protocol, tag | u32 known | u32 magic | u32 0

`known` is RX_KNOWN of state.py, with the errors of what was not known.  The magic word is taken out
when a frame is received, so no answers of a packet that was there before are read twice.  Only
programs that call these functions get such a redirect program; it costs three calls a packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from afxdp.rings import AFXDP
from afxdp.sg import AFXDP_SG
from dataplane.port import (
    DATA,
    FRAGMENTS,
    METADATA_BYTES,
    METADATA_KNOWN,
    RECEIVE_SIGNATURE,
    RX_TIMESTAMP,
    SLOT_SIZE_BYTES,
    PortKind,
)
from xdp_runtime.btf_lazy import kernel_types
from xdp_runtime.errors import LoadError
from xdp_runtime.state import KNOWS_HASH, KNOWS_TIMESTAMP, KNOWS_VLAN, RX_ERRORS_AT
from xdp_runtime.template import Template

_FUNCTIONS = ("bpf_xdp_metadata_rx_timestamp", "bpf_xdp_metadata_rx_hash",
              "bpf_xdp_metadata_rx_vlan_tag")
_MAGIC, _MAGIC_AT = 0x78647075, 24
_ASK = """
    r1 = r6
    {arguments}
    call kfunc#{number}
    if w0 == 0 goto known_{bit}
    w0 = -w0
    w0 &= 0xff
    w0 <<= {errors_at}
    r8 |= r0
    goto told_{bit}
known_{bit}:
    r8 |= {bit}
told_{bit}:
"""
_TELL = """
    *(u32 *)(r10 - 12) = r8
    w1 = {magic}
    *(u32 *)(r10 - 8) = r1
    r1 = r6
    r2 = -{size}
    call bpf_xdp_adjust_meta
    if r0 != 0 goto untold
    r2 = *(u32 *)(r6 + 8)
    r3 = *(u32 *)(r6 + 0)
    r1 = r2
    r1 += {size}
    if r1 > r3 goto untold
{copies}
untold:
    r1 = r6
"""


def to_assembly() -> str:
    """The asking, with the context in r6 before and in r1 behind it.  Raises LoadError on a kernel
    without these functions."""
    types = kernel_types()
    numbers = [types.function(name) for name in _FUNCTIONS]
    if not all(numbers):
        raise LoadError("RX metadata", f"this kernel has no {_FUNCTIONS[numbers.index(0)]}")
    text = "".join(f"    *(u64 *)(r10 - {at}) = r8\n" for at in (32, 24, 16, 8))
    for index, (bit, fields) in enumerate(((KNOWS_TIMESTAMP, (32,)), (KNOWS_HASH, (24, 20)),
                                           (KNOWS_VLAN, (16, 14)))):
        arguments = "\n    ".join(f"r{register} = r10\n    r{register} += -{at}"
                                  for register, at in enumerate(fields, 2))
        text += _ASK.format(arguments=arguments, number=numbers[index], bit=bit,
                            errors_at=RX_ERRORS_AT + 8 * index)
    copies = "\n".join(f"    r1 = *(u64 *)(r10 - {32 - at})\n    *(u64 *)(r2 + {at}) = r1"
                       for at in range(0, METADATA_BYTES, 8))
    return "    r8 = 0\n" + text + _TELL.format(magic=_MAGIC, size=METADATA_BYTES, copies=copies)


def _take(m: Any) -> Callable[..., Any]:
    def afxdp_hints_take(slot):  # type: ignore[no-untyped-def]
        """The answers in front of the slot's packet, or none where there are none."""
        record = m.gep(m.load_ptr(slot, DATA), -METADATA_BYTES)
        timestamp = 0
        if m.load_u32(record, _MAGIC_AT) != _MAGIC:
            m.store_u32(record, METADATA_KNOWN, 0)
        elif m.load_u32(record, METADATA_KNOWN) & KNOWS_TIMESTAMP != 0:
            timestamp = m.load_u64(record, 0)
        m.store_u32(record, _MAGIC_AT, 0)
        m.store_u64(slot, RX_TIMESTAMP, timestamp)
        return 0

    return afxdp_hints_take


TAKE = Template("afxdp_hints_take", _take, "i64(ptr)")


def _receive(m: Any) -> Callable[..., Any]:
    receive, take = m.extern(AFXDP.receive), m.extern(TAKE)

    def afxdp_hints_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        count = receive(q, batch, budget)
        for i in range(count):
            take(m.inside(batch, i * SLOT_SIZE_BYTES))
        return count

    return afxdp_hints_receive


def _sg_receive(m: Any) -> Callable[..., Any]:
    receive, take = m.extern(AFXDP_SG.receive), m.extern(TAKE)

    def afxdp_sg_hints_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        """They are in front of a packet's first frame; the others may have no room there."""
        count = receive(q, batch, budget)
        i = 0
        while i < count:
            slot = m.inside(batch, i * SLOT_SIZE_BYTES)
            take(slot)
            i += 1 + m.load_u32(slot, FRAGMENTS)
        return count

    return afxdp_sg_hints_receive


RECEIVE = Template("afxdp_hints_receive", _receive, RECEIVE_SIGNATURE, (AFXDP.receive, TAKE))
SG_RECEIVE = Template("afxdp_sg_hints_receive", _sg_receive, RECEIVE_SIGNATURE,
                      (AFXDP_SG.receive, TAKE))


def with_hints(kind: PortKind) -> PortKind:
    """The kind whose `receive` understands the answers."""
    receive = SG_RECEIVE if kind.receive is AFXDP_SG.receive else RECEIVE
    return replace(kind, name=f"{kind.name}_hints", receive=receive, timestamps=True, metadata=True)
