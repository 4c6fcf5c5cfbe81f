"""Templates of the AF_PACKET port: its receive ring, one sendmmsg(2) a batch.  See af_packet.py.

Receive walks a TPACKET_V2 ring; a packet lies in its ring frame behind the headroom that
PACKET_RESERVE asked for.  A frame belongs to user space while its status has STATUS_USER; storing
0 with release order gives it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane.port import (
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
)
from xdp_runtime.template import Template

# a queue's memory
FD, RING, FRAME_SIZE, FRAME_COUNT, HEAD = 0, 8, 16, 24, 32
TX, TX_MESSAGES, TX_SIZE, TX_COUNT = 40, 48, 56, 64  # buffers, mmsghdr[], bytes, packets waiting
RX_TRUNCATED, TX_FULL, TX_FAILED, TX_ERRNO, LONGEST_TRUNCATED = 72, 80, 88, 96, 104
FRAME_LIMIT = 112  # where FRAME_END is in a ring frame
QUEUE_BYTES = 128
TX_SLOTS = 512  # packets in one batch: its own and those of other ports

# struct tpacket2_hdr, then struct sockaddr_ll; [from HARD_START_OFFSET the packet may use]
STATUS, LENGTH, SNAP_LENGTH, MAC_OFFSET, VLAN_TCI, VLAN_TPID = 0, 4, 8, 12, 24, 26
HARD_START_OFFSET = 64
STATUS_USER, STATUS_VLAN_VALID, STATUS_VLAN_TPID_VALID = 1, 16, 64

# struct mmsghdr: msghdr {name, namelen, iov, iovlen, control, controllen, flags}, len; an iovec
MMSGHDR_BYTES, MMSG_IOV, MMSG_IOVLEN, IOVEC_BYTES = 64, 16, 24, 16
_MSG_DONTWAIT = 0x40
_EINTR, _EAGAIN, _ENOBUFS, _EMSGSIZE = 4, 11, 105, 90
_TPID_8021Q = 0x8100


def _receive(m: Any) -> Callable[..., Any]:
    def af_packet_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        size = m.load_u64(q, FRAME_SIZE)
        count = m.load_u64(q, FRAME_COUNT)
        ring = m.load_ptr(q, RING)
        head = m.load_u64(q, HEAD)
        n = 0
        tries = 0
        while n < budget and tries < count:
            tries += 1
            frame = m.inside(ring, head * size)
            status = m.acquire_u32(frame, STATUS)
            if status & STATUS_USER == 0:
                break
            length = m.load_u32(frame, LENGTH)
            if length > m.load_u32(frame, SNAP_LENGTH):
                m.store_u64(q, RX_TRUNCATED, m.load_u64(q, RX_TRUNCATED) + 1)
                m.store_u64(q, LONGEST_TRUNCATED, length)
                m.release_u32(frame, STATUS, 0)
            else:
                data = m.inside(frame, m.load_u16(frame, MAC_OFFSET))
                end = m.inside(data, length)
                if status & STATUS_VLAN_VALID != 0:
                    tagged = m.gep(data, -4)
                    m.move(tagged, data, 12)
                    tpid = _TPID_8021Q
                    if status & STATUS_VLAN_TPID_VALID != 0:
                        tpid = m.load_u16(frame, VLAN_TPID)
                    m.store_u16(tagged, 12, m.swap16(tpid))
                    m.store_u16(tagged, 14, m.swap16(m.load_u16(frame, VLAN_TCI)))
                    data = tagged
                slot = m.inside(batch, n * SLOT_SIZE_BYTES)
                m.store_ptr(slot, DATA, data)
                m.store_ptr(slot, DATA_END, end)
                m.store_ptr(slot, HARD_START, m.inside(frame, HARD_START_OFFSET))
                m.store_ptr(slot, FRAME_END, m.inside(frame, m.load_u64(q, FRAME_LIMIT)))
                m.store_u64(slot, COOKIE, head)
                n += 1
            head += 1
            if head == count:
                head = 0
        m.store_u64(q, HEAD, head)
        return n

    return af_packet_receive


def _release(m: Any) -> Callable[..., Any]:
    def af_packet_release(q, slot):  # type: ignore[no-untyped-def]
        offset = m.load_u64(slot, COOKIE) * m.load_u64(q, FRAME_SIZE)
        m.release_u32(m.inside(m.load_ptr(q, RING), offset), STATUS, 0)
        return 0

    return af_packet_release


RELEASE = Template("af_packet_release", _release, RELEASE_SIGNATURE)


def _submit(m: Any) -> Callable[..., Any]:
    def af_packet_submit(q):  # type: ignore[no-untyped-def]
        """Hand all waiting packets to the kernel; those it refuses are counted and skipped."""
        waiting = m.load_u64(q, TX_COUNT)
        messages = m.load_ptr(q, TX_MESSAGES)
        done = 0
        while done < waiting:
            sent = m.c_sendmmsg(m.load_u64(q, FD), m.inside(messages, done * MMSGHDR_BYTES),
                                waiting - done, _MSG_DONTWAIT)
            if sent > 0:
                done += sent
                continue
            error = m.errno()
            if error == _EINTR:
                continue
            m.store_u64(q, TX_ERRNO, error)
            if error == _EAGAIN or error == _ENOBUFS:
                m.store_u64(q, TX_FULL, m.load_u64(q, TX_FULL) + 1)
            else:
                m.store_u64(q, TX_FAILED, m.load_u64(q, TX_FAILED) + 1)
            done += 1
        m.store_u64(q, TX_COUNT, 0)
        return 0

    return af_packet_submit


SUBMIT = Template("af_packet_submit", _submit, FLUSH_SIGNATURE, inline=False)


def _send(m: Any) -> Callable[..., Any]:
    submit = m.extern(SUBMIT)

    def af_packet_send(q, data, length):  # type: ignore[no-untyped-def]
        size = m.load_u64(q, TX_SIZE)
        if length > size:
            m.store_u64(q, TX_ERRNO, _EMSGSIZE)
            return 0  # counted by whoever sends
        index = m.load_u64(q, TX_COUNT)
        if index == TX_SLOTS:
            submit(q)
            index = 0
        m.copy(m.inside(m.load_ptr(q, TX), index * size), data, length)
        vector = m.inside(m.load_ptr(q, TX_MESSAGES),
                          TX_SLOTS * MMSGHDR_BYTES + index * IOVEC_BYTES)
        m.store_u64(vector, 8, length)
        m.store_u64(q, TX_COUNT, index + 1)
        return 1

    return af_packet_send


SEND = Template("af_packet_send", _send, SEND_SIGNATURE, (SUBMIT,))


def _transmit(m: Any) -> Callable[..., Any]:
    send, release = m.extern(SEND), m.extern(RELEASE)

    def af_packet_transmit(q, slot):  # type: ignore[no-untyped-def]
        data = m.load_ptr(slot, DATA)
        sent = send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))
        release(q, slot)
        return sent

    return af_packet_transmit


def _flush(m: Any) -> Callable[..., Any]:
    submit = m.extern(SUBMIT)

    def af_packet_flush(q):  # type: ignore[no-untyped-def]
        if m.load_u64(q, TX_COUNT) != 0:
            submit(q)
        return 0

    return af_packet_flush


AF_PACKET = PortKind(
    "af_packet",
    receive=Template("af_packet_receive", _receive, RECEIVE_SIGNATURE),
    release=RELEASE,
    transmit=Template("af_packet_transmit", _transmit, TRANSMIT_SIGNATURE, (SEND, RELEASE)),
    send=SEND,
    flush=Template("af_packet_flush", _flush, FLUSH_SIGNATURE, (SUBMIT,)),
    losses=("rx_dropped", "rx_truncated", "tx_full", "tx_failed"),
)
