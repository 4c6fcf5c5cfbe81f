"""The DPDK port's templates: bursts of mbufs, called and filled by compiled code.

    | rte_mbuf | private: room | headroom 128 | packet            | tailroom |
    mbuf       +128             buf_addr       +data_off           +buf_len
                     HARD_START = buf_addr - 88  DATA                FRAME_END

DPDK leaves 128 bytes before a packet, the kernel 256, of which struct xdp_frame keeps 40.  So each
mbuf of ours has a private area before its buffer that makes up the difference.  A packet that
begins there is moved up before it is sent, as data_off cannot be negative: only one that grew by
more than 128 bytes.

An mbuf is used as it is if it is one segment and nobody else's (refcnt 1, neither indirect nor
external); any other is copied into one of ours, or dropped and counted if it fits none: programs of
section xdp.frags get several segments as they are (segments.py).  What is
freed and sent is collected, and goes in one call at the end of the batch.  A driver that takes less
than it was given is asked again as long as it takes some; the rest is freed, and counted in
`tx_full`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from dataplane.port import (
    BATCH_MAX,
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
from dpdk.queue import (
    ATTACH,
    ATTACHED_MBUF,
    COLD,
    FP_OPS,
    FREE_ARRAY,
    FREE_COUNT,
    GIVE_BACK,
    GROUP,
    LOSSES,
    MALFORMED,
    MBUF_POOL,
    MIN_LENGTH_BYTES,
    NO_MBUF,
    PRIVATE_BYTES,
    PUT,
    QUEUE_OFFSET,
    ROOM_BYTES,
    RX_ARRAY,
    RX_COPIED,
    RX_UNFIT,
    SETTLE,
    SPARE_ARRAY,
    SPARE_COUNT,
    SPARES,
    TAKE,
    TX_ARRAY,
    TX_COUNT,
    TX_FULL,
    TX_MOVED,
    WHOLE,
    Factory,
    Made,
)
from xdp_runtime.template import Template


def make(at: dict[str, int]) -> Made:
    """For headers with these offsets (_build.OFFSETS)."""
    mark = hashlib.sha256(repr(sorted(at.items())).encode()).hexdigest()[:8]
    buf_addr, rearm, flags_at, pkt_len = at["BUF_ADDR"], at["REARM"], at["OL_FLAGS"], at["PKT_LEN"]
    data_len, buf_len, pool_at, headroom = (at["DATA_LEN"], at["BUF_LEN"], at["POOL"],
                                            at["HEADROOM"])
    packet = at["MBUF"] + PRIVATE_BYTES + headroom  # where it begins in a fresh mbuf of ours
    rx_burst, rx_data, tx_burst, tx_data = (at["RX_BURST"], at["RX_DATA"], at["TX_BURST"],
                                            at["TX_DATA"])

    def make_push(m: Any) -> Factory:
        def dpdk_push(q):  # type: ignore
            """Send what was collected; what the driver has no room for is freed and counted."""
            count = m.load_u64(q, TX_COUNT)
            if count == 0:
                return 0
            ops = m.load_ptr(q, FP_OPS)
            queue = m.load_ptr(m.load_ptr(ops, tx_data), m.load_u64(q, QUEUE_OFFSET))
            burst = m.load_ptr(ops, tx_burst)
            done = 0
            while done < count:
                n = m.call_burst(burst, queue, m.inside(q, TX_ARRAY + done * 8), count - done)
                if n == 0:
                    break
                done += n
            if done < count:
                m.call_burst(m.load_ptr(q, GIVE_BACK), m.load_ptr(q, MBUF_POOL),
                             m.inside(q, TX_ARRAY + done * 8), count - done)
                m.store_u64(q, TX_FULL, m.load_u64(q, TX_FULL) + count - done)
            m.store_u64(q, TX_COUNT, 0)
            return done

        return dpdk_push

    push_template = Template(f"dpdk_push_{mark}", make_push, "i64(ptr)", inline=False)

    def make_free(m: Any) -> Factory:
        def dpdk_free(q):  # type: ignore
            count = m.load_u64(q, FREE_COUNT)
            if count != 0:
                m.call_burst(m.load_ptr(q, PUT), m.load_ptr(q, MBUF_POOL),
                             m.inside(q, FREE_ARRAY), count)
                m.store_u64(q, FREE_COUNT, 0)
            return 0

        return dpdk_free

    free_template = Template(f"dpdk_free_{mark}", make_free, "i64(ptr)", inline=False)

    def make_free_other(m: Any) -> Factory:
        def dpdk_free_other(q, mbuf):  # type: ignore
            one = m.alloca(8)
            m.store_ptr(one, 0, mbuf)
            return m.call_burst(m.load_ptr(q, GIVE_BACK), m.load_ptr(q, MBUF_POOL), one, 1)

        return dpdk_free_other

    free_other_template = Template(f"dpdk_free_other_{mark}", make_free_other, "i64(ptr, ptr)",
                                   inline=False, cold=True)

    def make_sort_out(m: Any) -> Factory:
        def dpdk_sort_out(q, first, count):  # type: ignore
            """What is not one segment of ours alone becomes one, or is freed if it fits none.

            What receiving says of a packet is no wish for sending."""
            n = first
            for i in range(first, count):
                where = m.inside(q, RX_ARRAY + i * 8)
                mbuf = m.load_ptr(where, 0)
                whole = m.load_u32(mbuf, rearm + 2) == WHOLE
                if not whole or m.load_u64(mbuf, flags_at) & ATTACHED_MBUF != 0:
                    if m.call_burst(m.load_ptr(q, SETTLE), m.load_ptr(q, MBUF_POOL), where, 1) == 0:
                        m.store_u64(q, RX_UNFIT, m.load_u64(q, RX_UNFIT) + 1)
                        continue
                    m.store_u64(q, RX_COPIED, m.load_u64(q, RX_COPIED) + 1)
                    mbuf = m.load_ptr(where, 0)
                m.store_u64(mbuf, flags_at, 0)
                m.store_ptr(q, RX_ARRAY + n * 8, mbuf)
                n += 1
            return n

        return dpdk_sort_out

    sort_out_template = Template(f"dpdk_sort_out_{mark}", make_sort_out, "i64(ptr, i64, i64)",
                                 inline=False, cold=True)

    def make_fit(m: Any) -> Factory:
        sort_out = m.extern(sort_out_template)

        def dpdk_fit(q, first, count):  # type: ignore
            """Some together, as a branch for each packet costs as much as its program may."""
            mbufs, odd, group = m.inside(q, RX_ARRAY), m.alloca(16), m.load_u64(q, GROUP)
            upto = m.smaller(first + group, count)
            m.zero(odd, 16)
            if m.load_u64(q, COLD) != 0:
                for i in range(upto if first != 0 else 0, m.smaller(upto + group, count)):
                    m.prefetch(m.load_ptr(mbufs, i * 8), packet)
            for i in range(first, upto):
                m.note_difference(odd, m.load_ptr(mbufs, i * 8), rearm, WHOLE << 16, 0)
            if (m.load_u64(odd, 0) & (0xffffffff << 16)) | m.load_u64(odd, 8) != 0:
                return sort_out(q, first, count)
            return count

        return dpdk_fit

    fit_template = Template(f"dpdk_fit_{mark}", make_fit, "i64(ptr, i64, i64)",
                            (sort_out_template,))

    def make_fill(m: Any) -> Factory:
        def dpdk_fill(q, i, slot):  # type: ignore
            mbuf = m.load_ptr(q, RX_ARRAY + i * 8)
            buffer = m.load_ptr(mbuf, buf_addr)
            data = m.inside(buffer, m.load_u16(mbuf, rearm))
            own = m.diff(m.load_ptr(mbuf, pool_at), m.load_ptr(q, MBUF_POOL)) == 0
            room = ROOM_BYTES if own else 0
            m.store_ptr(slot, DATA, data)
            m.store_ptr(slot, DATA_END, m.inside(data, m.load_u16(mbuf, data_len)))
            m.store_ptr(slot, HARD_START, m.gep(buffer, -room))
            m.store_ptr(slot, FRAME_END, m.inside(buffer, m.load_u16(mbuf, buf_len)))
            m.store_ptr(slot, COOKIE, mbuf)
            return 0

        return dpdk_fill

    fill_template = Template(f"dpdk_fill_{mark}", make_fill, "i64(ptr, i64, ptr)")

    def make_receive(m: Any) -> Factory:
        fit, fill = m.extern(fit_template), m.extern(fill_template)

        def dpdk_receive(q, batch, budget):  # type: ignore
            if m.call_burst(m.load_ptr(q, ATTACH), q, q, 0) == 0:
                return 0
            ops = m.load_ptr(q, FP_OPS)
            queue = m.load_ptr(m.load_ptr(ops, rx_data), m.load_u64(q, QUEUE_OFFSET))
            count = m.call_burst(m.load_ptr(ops, rx_burst), queue, m.inside(q, RX_ARRAY), budget)
            first, group = 0, m.load_u64(q, GROUP)
            while first < count:
                count = fit(q, first, count)
                for i in range(first, m.smaller(first + group, count)):
                    fill(q, i, m.inside(batch, i * SLOT_SIZE_BYTES))
                first += group
            return count

        return dpdk_receive

    def make_release(m: Any) -> Factory:
        free, free_other = m.extern(free_template), m.extern(free_other_template)

        def dpdk_release(q, slot):  # type: ignore
            mbuf = m.load_ptr(slot, COOKIE)
            if m.diff(m.load_ptr(mbuf, pool_at), m.load_ptr(q, MBUF_POOL)) != 0:
                return free_other(q, mbuf)
            if m.load_u64(q, FREE_COUNT) == BATCH_MAX:
                free(q)
            count = m.load_u64(q, FREE_COUNT)
            m.store_ptr(q, FREE_ARRAY + count * 8, mbuf)
            m.store_u64(q, FREE_COUNT, count + 1)
            return 0

        return dpdk_release

    release_template = Template(f"dpdk_release_{mark}", make_release, RELEASE_SIGNATURE,
                                (free_template, free_other_template))

    def make_move_up(m: Any) -> Factory:
        def dpdk_move_up(q, mbuf, data, length):  # type: ignore
            """The packet begins before its buffer: to where that begins -> 1; 0: it is too long."""
            if length > m.load_u16(mbuf, buf_len):
                return 0
            m.move(m.load_ptr(mbuf, buf_addr), data, length)
            m.store_u64(q, TX_MOVED, m.load_u64(q, TX_MOVED) + 1)
            return 1

        return dpdk_move_up

    move_up_template = Template(f"dpdk_move_up_{mark}", make_move_up, "i64(ptr, ptr, ptr, i64)",
                                inline=False, cold=True)

    def make_malformed(m: Any) -> Factory:
        def dpdk_malformed(q):  # type: ignore
            m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
            return 0

        return dpdk_malformed

    malformed_template = Template(f"dpdk_malformed_{mark}", make_malformed, "i64(ptr)",
                                  inline=False, cold=True)

    def make_ready(m: Any) -> Factory:
        move_up, malformed = m.extern(move_up_template), m.extern(malformed_template)

        def dpdk_ready(q, slot, buffer):  # type: ignore
            mbuf, data = m.load_ptr(slot, COOKIE), m.load_ptr(slot, DATA)
            length = m.diff(m.load_ptr(slot, DATA_END), data)
            offset = m.diff(data, buffer)
            if offset < 0:
                if move_up(q, mbuf, data, length) == 0:
                    length = 0
                offset = 0
            if length < MIN_LENGTH_BYTES:
                return malformed(q)
            m.store_u16(mbuf, rearm, offset)
            m.store_u32(mbuf, pkt_len, length)
            m.store_u16(mbuf, data_len, length)
            return 1

        return dpdk_ready

    ready_template = Template(f"dpdk_ready_{mark}", make_ready, "i64(ptr, ptr, ptr)",
                              (move_up_template, malformed_template))

    def make_transmit(m: Any) -> Factory:
        push, release, ready = (m.extern(push_template), m.extern(release_template),
                                m.extern(ready_template))

        def dpdk_transmit(q, slot):  # type: ignore
            if ready(q, slot, m.load_ptr(m.load_ptr(slot, COOKIE), buf_addr)) == 0:
                release(q, slot)
                return 0
            if m.load_u64(q, TX_COUNT) == BATCH_MAX:
                push(q)
            count = m.load_u64(q, TX_COUNT)
            m.store_ptr(q, TX_ARRAY + count * 8, m.load_ptr(slot, COOKIE))
            m.store_u64(q, TX_COUNT, count + 1)
            return 1

        return dpdk_transmit

    def make_send(m: Any) -> Factory:
        push = m.extern(push_template)

        def dpdk_send(q, data, length):  # type: ignore
            spare = m.load_u64(q, SPARE_COUNT)
            if spare == 0:
                spare = 0
                if m.call_burst(m.load_ptr(q, ATTACH), q, q, 0) != 0:
                    spare = m.call_burst(m.load_ptr(q, TAKE), m.load_ptr(q, MBUF_POOL),
                                         m.inside(q, SPARE_ARRAY), SPARES)
                m.store_u64(q, SPARE_COUNT, spare)
            if spare == 0:
                m.store_u64(q, NO_MBUF, m.load_u64(q, NO_MBUF) + 1)
                return 0
            mbuf = m.load_ptr(q, SPARE_ARRAY + (spare - 1) * 8)
            if length < MIN_LENGTH_BYTES or length > m.load_u16(mbuf, buf_len) - headroom:
                m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
                return 0
            m.store_u64(q, SPARE_COUNT, spare - 1)
            m.copy(m.inside(m.load_ptr(mbuf, buf_addr), headroom), data, length)
            m.store_u32(mbuf, pkt_len, length)
            m.store_u16(mbuf, data_len, length)
            if m.load_u64(q, TX_COUNT) == BATCH_MAX:
                push(q)
            count = m.load_u64(q, TX_COUNT)
            m.store_ptr(q, TX_ARRAY + count * 8, mbuf)
            m.store_u64(q, TX_COUNT, count + 1)
            return 1

        return dpdk_send

    def make_flush(m: Any) -> Factory:
        push, free = m.extern(push_template), m.extern(free_template)

        def dpdk_flush(q):  # type: ignore
            if m.load_u64(q, FREE_COUNT) != 0:
                free(q)
            if m.load_u64(q, TX_COUNT) != 0:
                push(q)
            return 0

        return dpdk_flush

    return Made(PortKind(
        "dpdk",
        receive=Template(f"dpdk_receive_{mark}", make_receive, RECEIVE_SIGNATURE,
                         (fit_template, fill_template)),
        release=release_template,
        transmit=Template(f"dpdk_transmit_{mark}", make_transmit, TRANSMIT_SIGNATURE,
                          (push_template, release_template, ready_template)),
        send=Template(f"dpdk_send_{mark}", make_send, SEND_SIGNATURE, (push_template,),
                      inline=False),
        flush=Template(f"dpdk_flush_{mark}", make_flush, FLUSH_SIGNATURE,
                       (push_template, free_template)),
        losses=LOSSES,
    ), push_template, free_template, fit_template, fill_template, free_other_template,
        ready_template, at, mark)
