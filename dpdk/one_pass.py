"""The DPDK port's templates for a batch in one pass (dataplane/one_pass.py).

In the hand are the numbers of mbufs that are to be sent and to be freed, and what would have to be
loaded again after a program's store.  The array of what was received becomes that of what is sent:
there are never more of these.  That of what is freed has room for a burst when it begins.  So
nothing is called before the batch ends, and then what is sent goes at once.

Of a batch whose packets all have one verdict and that no program looked at, the mbufs are not
looked at either when they are sent: each is on a page of its own where there are no huge pages, and
looking at it takes 4 ns.  Before they go back to their pool they are.
"""

from __future__ import annotations

from typing import Any

from dataplane.port import BATCH_MAX, COOKIE, DATA, DATA_END, OnePass
from dpdk.queue import (
    ATTACH,
    ATTACHED,
    ATTACHED_MBUF,
    FP_OPS,
    FREE_ARRAY,
    FREE_COUNT,
    GIVE_BACK,
    GROUP,
    MBUF_POOL,
    PUT,
    QUEUE_OFFSET,
    RX_ARRAY,
    TX_FULL,
    WHOLE,
    Factory,
    Made,
)
from xdp_runtime.template import Template

# of the hand; the last three are the packet's, as it was received
_TO_FREE, _BUFFER, _DATA, _END = range(0, 32, 8)


def make(plain: Made) -> OnePass:
    """The templates for the same headers as `plain`."""
    at, mark = plain.at, plain.mark
    buf_addr, pool_at = at["BUF_ADDR"], at["POOL"]
    rx_burst, rx_data = at["RX_BURST"], at["RX_DATA"]
    tx_burst, tx_data = at["TX_BURST"], at["TX_DATA"]
    rearm, flags_at, pkt_len = at["REARM"], at["OL_FLAGS"], at["PKT_LEN"]

    def make_begin(m: Any) -> Factory:
        def dpdk_begin(q):  # type: ignore
            m.store_u64(q, ATTACHED, m.call_burst(m.load_ptr(q, ATTACH), q, q, 0))
            return 0

        return dpdk_begin

    begin_template = Template(f"dpdk_begin_{mark}", make_begin, "i64(ptr)", inline=False)

    def make_burst(m: Any) -> Factory:
        begin, free = m.extern(begin_template), m.extern(plain.free)

        def dpdk_burst(q, hand, budget):  # type: ignore
            if m.load_u64(q, ATTACHED) == 0:  # no number was free: again
                begin(q)
                return 0
            if m.load_u64(q, FREE_COUNT) + budget > BATCH_MAX:
                free(q)
            ops, mbufs = m.load_ptr(q, FP_OPS), m.inside(q, RX_ARRAY)
            queue = m.load_ptr(m.load_ptr(ops, rx_data), m.load_u64(q, QUEUE_OFFSET))
            got = m.call_burst(m.load_ptr(ops, rx_burst), queue, mbufs, budget)
            m.store_u64(hand, _TO_FREE, m.load_u64(q, FREE_COUNT))
            return got

        return dpdk_burst

    def make_group(m: Any) -> Factory:
        def dpdk_one_group(q):  # type: ignore
            return m.load_u64(q, GROUP)

        return dpdk_one_group

    def make_fit(m: Any) -> Factory:
        fit = m.extern(plain.fit)

        def dpdk_one_fit(q, hand, first, count):  # type: ignore
            return fit(q, first, count)

        return dpdk_one_fit

    def make_open(m: Any) -> Factory:
        fill = m.extern(plain.fill)

        def dpdk_open(q, hand, i, slot):  # type: ignore
            fill(q, i, slot)
            m.store_ptr(hand, _BUFFER, m.load_ptr(m.load_ptr(slot, COOKIE), buf_addr))
            m.store_ptr(hand, _DATA, m.load_ptr(slot, DATA))
            m.store_ptr(hand, _END, m.load_ptr(slot, DATA_END))
            return 0

        return dpdk_open

    def make_release(m: Any) -> Factory:
        def dpdk_one_release(q, hand, slot):  # type: ignore
            mbuf = m.load_ptr(slot, COOKIE)
            if m.diff(m.load_ptr(mbuf, pool_at), m.load_ptr(q, MBUF_POOL)) != 0:
                return 0
            count = m.load_u64(hand, _TO_FREE)
            m.store_ptr(q, FREE_ARRAY + count * 8, mbuf)
            m.store_u64(hand, _TO_FREE, count + 1)
            return 1

        return dpdk_one_release

    release_template = Template(f"dpdk_one_release_{mark}", make_release, "i64(ptr, ptr, ptr)")

    def make_transmit(m: Any) -> Factory:
        ready, release, free_other = (m.extern(plain.ready), m.extern(release_template),
                                      m.extern(plain.free_other))

        def dpdk_one_transmit(q, hand, slot, i, missing):  # type: ignore
            data, end = m.load_ptr(slot, DATA), m.load_ptr(slot, DATA_END)
            same = m.diff(data, m.load_ptr(hand, _DATA)) == 0 \
                and m.diff(end, m.load_ptr(hand, _END)) == 0
            if not same:  # else its mbuf says so already
                if ready(q, slot, m.load_ptr(hand, _BUFFER)) == 0:
                    if release(q, hand, slot) == 0:
                        free_other(q, m.load_ptr(slot, COOKIE))
                    return 0
            if m.unlikely(missing != 0):  # else it is there
                m.store_ptr(q, RX_ARRAY + (i - missing) * 8, m.load_ptr(slot, COOKIE))
            return 1

        return dpdk_one_transmit

    def make_rest(m: Any) -> Factory:
        def dpdk_rest(q, done, count):  # type: ignore
            """The driver took but so many: as bursts.py."""
            ops = m.load_ptr(q, FP_OPS)
            queue = m.load_ptr(m.load_ptr(ops, tx_data), m.load_u64(q, QUEUE_OFFSET))
            n = done
            while n != 0 and done < count:
                n = m.call_burst(m.load_ptr(ops, tx_burst), queue,
                                 m.inside(q, RX_ARRAY + done * 8), count - done)
                done += n
            if done < count:
                m.call_burst(m.load_ptr(q, GIVE_BACK), m.load_ptr(q, MBUF_POOL),
                             m.inside(q, RX_ARRAY + done * 8), count - done)
                m.store_u64(q, TX_FULL, m.load_u64(q, TX_FULL) + count - done)
            return 0

        return dpdk_rest

    rest_template = Template(f"dpdk_rest_{mark}", make_rest, "i64(ptr, i64, i64)", inline=False,
                             cold=True)

    def make_transmit_all(m: Any) -> Factory:
        rest = m.extern(rest_template)

        def dpdk_transmit_all(q, hand, count):  # type: ignore
            ops = m.load_ptr(q, FP_OPS)
            queue = m.load_ptr(m.load_ptr(ops, tx_data), m.load_u64(q, QUEUE_OFFSET))
            done = m.call_burst(m.load_ptr(ops, tx_burst), queue, m.inside(q, RX_ARRAY), count)
            if done != count:
                rest(q, done, count)
            return 0

        return dpdk_transmit_all

    transmit_all_template = Template(f"dpdk_transmit_all_{mark}", make_transmit_all,
                                     "i64(ptr, ptr, i64)", (rest_template,))

    def make_release_all(m: Any) -> Factory:
        def dpdk_release_all(q, hand, count):  # type: ignore
            mbufs, pool = m.inside(q, RX_ARRAY), m.load_ptr(q, MBUF_POOL)
            other = total = 0
            for i in range(count):
                mbuf = m.load_ptr(mbufs, i * 8)
                other |= m.load_u32(mbuf, rearm + 2) ^ WHOLE
                other |= m.load_u64(mbuf, flags_at) & ATTACHED_MBUF
                other |= m.diff(m.load_ptr(mbuf, pool_at), pool)
                total += m.relaxed_u32(mbuf, pkt_len)  # so LLVM makes no slow gathers of the loop
            how = m.load_ptr(q, PUT)
            if other != 0:
                how = m.load_ptr(q, GIVE_BACK)
            m.call_burst(how, pool, mbufs, count)
            return total

        return dpdk_release_all

    def make_done(m: Any) -> Factory:
        transmit_all = m.extern(transmit_all_template)

        def dpdk_done(q, hand, sent):  # type: ignore
            m.store_u64(q, FREE_COUNT, m.load_u64(hand, _TO_FREE))
            if sent != 0:
                transmit_all(q, hand, sent)
            return 0

        return dpdk_done

    return OnePass(
        begin=begin_template,
        burst=Template(f"dpdk_burst_{mark}", make_burst, "i64(ptr, ptr, i64)",
                       (begin_template, plain.free)),
        group=Template(f"dpdk_one_group_{mark}", make_group, "i64(ptr)"),
        fit=Template(f"dpdk_one_fit_{mark}", make_fit, "i64(ptr, ptr, i64, i64)",
                     (plain.fit,)),
        open=Template(f"dpdk_open_{mark}", make_open, "i64(ptr, ptr, i64, ptr)", (plain.fill,)),
        release=release_template,
        transmit=Template(f"dpdk_one_transmit_{mark}", make_transmit,
                          "i64(ptr, ptr, ptr, i64, i64)",
                          (plain.ready, plain.free_other, release_template)),
        done=Template(f"dpdk_done_{mark}", make_done, "i64(ptr, ptr, i64)",
                      (transmit_all_template,)),
        transmit_all=transmit_all_template,
        release_all=Template(f"dpdk_release_all_{mark}", make_release_all, "i64(ptr, ptr, i64)"),
    )
