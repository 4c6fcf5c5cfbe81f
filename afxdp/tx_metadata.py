"""TX metadata: a checksum that a local sender left to hardware is asked of the driver.

A frame from a veth may carry no checksum yet, just the sum of the pseudo-header (checksum.py says
how that is seen, and what it risks); sent on as it is, by XDP_TX or a redirect, every receiver
drops it, as with XDP in the kernel.  AF_XDP has a word for it since Linux 6.8: 24 bytes in front of
the packet, and an option in the descriptor that says so, struct xsk_tx_metadata of linux/if_xdp.h:

    u64 flags | u16 csum_start, csum_offset, u32 0 | u64 launch time

A driver with zero-copy computes the checksum while it sends; in copy mode the kernel makes a skb
with CHECKSUM_PARTIAL of it, which a veth hands over as it is, and any other device or the kernel
completes.  Where the kernel or the driver knows no metadata, and in live frames, which have no
place for it, the checksum is computed here.

All of a umem's descriptors then have to keep that room in front of the packet: a packet that was
received has it, what is copied in begins at BEHIND_METADATA of its chunk (rings.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

from afxdp import sg, xsk
from afxdp.rings import (
    ADDRESS_MASK,
    AFXDP,
    ARRAY,
    DESC_BYTES,
    MASK,
    METADATA_ASKS,
    MINE,
    OFFSET_BITS_AT,
    TX,
    TX_CHECKSUMS,
    UMEM,
)
from dataplane.checksum import COMPLETE, PARTIAL
from dataplane.netdev import XSK_TX_CHECKSUM, XSK_TX_TIMESTAMP, xsk_features
from dataplane.port import (
    CHAIN_SIGNATURE,
    DATA,
    DATA_END,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
)
from xdp_runtime.template import Template

WORDS = ("auto", "off")
BYTES = 24
OPTION = 2  # XDP_TX_METADATA, in a descriptor's options
CHECKSUM = 2  # XDP_TXMD_FLAGS_CHECKSUM
HEADERS_BYTES = 14 + 8 + 60 + 20  # Ethernet, two tags, the longest IPv4 header, TCP to its checksum
OPTIONS_AT, _CSUM_START, _CSUM_OFFSET = 12, 8, 10


def _ask(m: Any) -> Callable[..., Any]:
    def afxdp_ask_checksum(q, where, frames):  # type: ignore[no-untyped-def]
        """Of the packet put into TX last, in so many frames: of the first, for all of it."""
        first = (m.load_u64(q, TX + MINE) - frames) & m.load_u64(q, TX + MASK)
        desc = m.inside(m.load_ptr(q, TX + ARRAY), first * DESC_BYTES)
        address = m.load_u64(desc, 0)
        packet = (address & ADDRESS_MASK) + m.lshr(address, OFFSET_BITS_AT)
        record = m.inside(m.load_ptr(q, UMEM), packet - BYTES)
        m.store_u64(record, 0, CHECKSUM)
        m.store_u64(record, _CSUM_START, 0)
        m.store_u64(record, 16, 0)
        m.store_u16(record, _CSUM_START, where >> 16)
        m.store_u16(record, _CSUM_OFFSET, where & 0xFFFF)
        m.store_u32(desc, OPTIONS_AT, m.load_u32(desc, OPTIONS_AT) | OPTION)
        return 0

    return afxdp_ask_checksum


ASK = Template("afxdp_ask_checksum", _ask, "i64(ptr, i64, i64)", inline=False)


def _finish(m: Any) -> Callable[..., Any]:
    ask, complete = m.extern(ASK), m.extern(COMPLETE)

    def afxdp_finish_checksum(q, where):  # type: ignore[no-untyped-def]
        """As ask, or computed here where nobody can be asked."""
        m.store_u64(q, TX_CHECKSUMS, m.load_u64(q, TX_CHECKSUMS) + 1)
        if m.load_u64(q, METADATA_ASKS) != 0:
            return ask(q, where, 1)
        last = (m.load_u64(q, TX + MINE) - 1) & m.load_u64(q, TX + MASK)
        desc = m.inside(m.load_ptr(q, TX + ARRAY), last * DESC_BYTES)
        address = m.load_u64(desc, 0)
        packet = (address & ADDRESS_MASK) + m.lshr(address, OFFSET_BITS_AT)
        return complete(m.inside(m.load_ptr(q, UMEM), packet), m.load_u32(desc, 8), where)

    return afxdp_finish_checksum


FINISH = Template("afxdp_finish_checksum", _finish, "i64(ptr, i64)", (ASK, COMPLETE), inline=False)


def _complete_asked(m: Any) -> Callable[..., Any]:
    complete = m.extern(COMPLETE)

    def afxdp_complete_asked(data, length):  # type: ignore[no-untyped-def]
        """Of a packet in the umem that leaves without its metadata after all."""
        record = m.gep(data, -BYTES)
        where = m.load_u16(record, _CSUM_START) << 16 | m.load_u16(record, _CSUM_OFFSET)
        return complete(data, length, where)

    return afxdp_complete_asked


COMPLETE_ASKED = Template("afxdp_complete_asked", _complete_asked, "i64(ptr, i64)", (COMPLETE,),
                          inline=False)


def _transmit(m: Any) -> Callable[..., Any]:
    transmit, partial = m.extern(AFXDP.transmit), m.extern(PARTIAL)
    finish = m.extern(FINISH)

    def afxdp_checked_transmit(q, slot):  # type: ignore[no-untyped-def]
        data = m.load_ptr(slot, DATA)
        where = partial(data, m.diff(m.load_ptr(slot, DATA_END), data))
        if transmit(q, slot) == 0:
            return 0
        if where != 0:
            finish(q, where)
        return 1

    return afxdp_checked_transmit


def _send(m: Any) -> Callable[..., Any]:
    send, partial, finish = m.extern(AFXDP.send), m.extern(PARTIAL), m.extern(FINISH)

    def afxdp_checked_send(q, data, length):  # type: ignore[no-untyped-def]
        if send(q, data, length) == 0:
            return 0
        where = partial(data, length)
        if where != 0:
            finish(q, where)
        return 1

    return afxdp_checked_send


TRANSMIT = Template("afxdp_checked_transmit", _transmit, TRANSMIT_SIGNATURE,
                    (AFXDP.transmit, PARTIAL, FINISH))
SEND = Template("afxdp_checked_send", _send, SEND_SIGNATURE, (AFXDP.send, PARTIAL, FINISH),
                inline=False)


# Of packets in several frames.  One that takes several can only be asked for: nobody here computes
# over them, and where nobody can be asked they leave as they are.

def _sg_finish(m: Any) -> Callable[..., Any]:
    ask, finish = m.extern(ASK), m.extern(FINISH)

    def afxdp_sg_finish_checksum(q, where, before):  # type: ignore[no-untyped-def]
        """Of the packet put into TX since its counter was `before`."""
        frames = m.load_u64(q, TX + MINE) - before
        if frames == 1:
            return finish(q, where)
        if m.load_u64(q, METADATA_ASKS) != 0:
            m.store_u64(q, TX_CHECKSUMS, m.load_u64(q, TX_CHECKSUMS) + 1)
            return ask(q, where, frames)
        return 0

    return afxdp_sg_finish_checksum


SG_FINISH = Template("afxdp_sg_finish_checksum", _sg_finish, "i64(ptr, i64, i64)", (ASK, FINISH),
                     inline=False)


def _sg_transmit(m: Any) -> Callable[..., Any]:
    transmit, partial = m.extern(sg.AFXDP_SG.transmit), m.extern(PARTIAL)
    finish = m.extern(SG_FINISH)

    def afxdp_sg_checked_transmit(q, slot):  # type: ignore[no-untyped-def]
        data, before = m.load_ptr(slot, DATA), m.load_u64(q, TX + MINE)
        where = partial(data, m.diff(m.load_ptr(slot, DATA_END), data))
        if transmit(q, slot) == 0:
            return 0
        if where != 0:
            finish(q, where, before)
        return 1

    return afxdp_sg_checked_transmit


def _sg_send(m: Any) -> Callable[..., Any]:
    send, partial, finish = m.extern(sg.SEND), m.extern(PARTIAL), m.extern(SG_FINISH)

    def afxdp_sg_checked_send(q, data, length):  # type: ignore[no-untyped-def]
        before = m.load_u64(q, TX + MINE)
        if send(q, data, length) == 0:
            return 0
        where = partial(data, length)
        if where != 0:
            finish(q, where, before)
        return 1

    return afxdp_sg_checked_send


def _sg_chain(m: Any) -> Callable[..., Any]:
    chain, partial, finish = m.extern(sg.CHAIN), m.extern(PARTIAL), m.extern(SG_FINISH)

    def afxdp_sg_checked_chain(q, slot, more):  # type: ignore[no-untyped-def]
        data, before = m.load_ptr(slot, DATA), m.load_u64(q, TX + MINE)
        length = m.diff(m.load_ptr(slot, DATA_END), data)
        where = 0
        if length >= HEADERS_BYTES:  # all that is looked at is in its first frame
            for i in range(more):
                one = m.gep(slot, (i + 1) * SLOT_SIZE_BYTES)
                length += m.diff(m.load_ptr(one, DATA_END), m.load_ptr(one, DATA))
            where = partial(data, length)
        if chain(q, slot, more) == 0:
            return 0
        if where != 0:
            finish(q, where, before)
        return 1

    return afxdp_sg_checked_chain


SG_TRANSMIT = Template("afxdp_sg_checked_transmit", _sg_transmit, TRANSMIT_SIGNATURE,
                       (sg.AFXDP_SG.transmit, PARTIAL, SG_FINISH))
SG_SEND = Template("afxdp_sg_checked_send", _sg_send, SEND_SIGNATURE,
                   (sg.SEND, PARTIAL, SG_FINISH), inline=False)
SG_CHAIN = Template("afxdp_sg_checked_chain", _sg_chain, CHAIN_SIGNATURE,
                    (sg.CHAIN, PARTIAL, SG_FINISH), inline=False)


def with_checksums(kind: PortKind) -> PortKind:
    """The kind that sends no checksum unfinished."""
    if kind.chain is not None:
        return replace(kind, name=f"{kind.name}_checked", transmit=SG_TRANSMIT, send=SG_SEND,
                       chain=SG_CHAIN)
    return replace(kind, name=f"{kind.name}_checked", transmit=TRANSMIT, send=SEND)


# ---- what the machine can ------------------------------------------------------------------------

@cache
def kernel_takes_it() -> bool:
    """Can a umem be registered with room for metadata (Linux 6.11)?"""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page, closing(xsk.Socket()) as sock:
            sock.register(xsk.address_of(page), mmap.PAGESIZE, mmap.PAGESIZE, 0, BYTES)
    except OSError:
        return False
    return True


def can_ask(ifindex: int, registered: bool, zero_copy: bool, frags: bool = False
            ) -> tuple[bool, str]:
    """May checksums be asked of this interface; and who computes them, in words."""
    features = xsk_features(ifindex) or 0
    here = "here, but for packets of several frames" if frags else "here"
    if not registered:
        return False, f"{here} (the kernel takes no TX metadata: Linux 6.11)"
    if not zero_copy:
        return True, "by the stack or the device (TX metadata)"
    if features & XSK_TX_CHECKSUM:
        stamps = ", which has TX timestamps too" if features & XSK_TX_TIMESTAMP else ""
        return True, f"by the driver{stamps} (TX metadata)"
    return False, f"{here} (the driver takes no tx-checksum)"
