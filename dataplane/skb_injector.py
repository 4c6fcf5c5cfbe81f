"""Frames into the kernel's stack as skbs of its own memory, many with one system call.

What is run is a program of tc, by BPF_PROG_TEST_RUN: it writes the next frame over the skb that the
call has, and a clone of that is received by the interface (bpf_clone_redirect with BPF_F_INGRESS):

    while cursor != until, A_RUN at most:      (a cursor and an end for each queue)
        slot = cursor++ & (SLOTS - 1)
        bpf_skb_change_tail(skb, slot.length)
        bpf_skb_store_bytes(skb, 0, slot.bytes, slot.length)
        bpf_clone_redirect(skb, the interface, BPF_F_INGRESS)

Live frames (injector.py) come dear afterwards: each call of theirs has a pool of pages, and while
somebody behind the stack holds one of its frames, as a socket does, the pool stays.  A second later
the kernel's worker on this CPU looks after each of them, under a mutex that the next call needs,
too: of 10,000 calls a second a hundredth took 10 ms and more.  Here nothing is left behind; a call
costs 6 us in the place of 17, and a frame in a socket's buffer what one of any interface does.

The call's skb is as large as the largest frame that is collected (live_frames.py): what it grows by
in a call, nobody would be charged for (pskb_expand_head of a skb that has a socket, as this has).

The frames are received when a run is over, on this CPU, or where RPS has them.  Past
net.core.netdev_max_backlog the kernel refuses frames, which are counted.
"""

from __future__ import annotations

from dataplane.injector import (
    BYTES,
    CURSOR,
    FIRST_SLOT,
    FRAME_MIN,
    LENGTH,
    REFUSED,
    SLOTS,
    UNTIL,
    Aim,
    Injector,
)
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import ProgType, prog_load
from xdp_runtime.isa import encode

A_RUN = 64  # frames, a power of two: what the kernel's backlog gives the stack in one go

_PROGRAM = """
    r6 = r1
    *(u32 *)(r10 - 4) = {queue}
    r1 = map[frames] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem#1
    if r0 == 0 goto done
    r9 = r0
    *(u64 *)(r10 - 16) = {a_run}
next:
    r7 = *(u64 *)(r9 + {cursor})
    r1 = *(u64 *)(r9 + {until})
    if r7 == r1 goto done
    r1 = r7
    r1 += 1
    *(u64 *)(r9 + {cursor}) = r1
    r7 &= {mask}
    r7 *= {slot_bytes}
    r7 += r9
    r8 = *(u32 *)(r7 + {length})
    if r8 < {shortest} goto refused
    if r8 > {longest} goto refused
    r1 = *(u32 *)(r6 + 0)
    if r1 == r8 goto fits
    r1 = r6
    r2 = r8
    r3 = 0
    call bpf_skb_change_tail#38
    if r0 != 0 goto refused
fits:
    r1 = r6
    r2 = 0
    r3 = r7
    r3 += {bytes}
    r4 = r8
    r5 = 0
    call bpf_skb_store_bytes#9
    if r0 != 0 goto refused
    r1 = r6
    r2 = {ifindex}
    r3 = 1
    call bpf_clone_redirect#13
    if r0 == 0 goto counted
refused:
    r1 = *(u64 *)(r9 + {refused})
    r1 += 1
    *(u64 *)(r9 + {refused}) = r1
counted:
    r1 = *(u64 *)(r10 - 16)
    r1 += -1
    *(u64 *)(r10 - 16) = r1
    if r1 != 0 goto next
done:
    r0 = 0
    exit
"""


class SkbInjector(Injector):
    """As Injector; into the interface's stack only."""

    what, live = "injected skbs", False
    a_run = A_RUN

    def _load(self, frames: int, queue: int, ifindex: int, aim: Aim) -> int:
        text = _PROGRAM.format(
            queue=queue, cursor=CURSOR, until=UNTIL, refused=REFUSED, mask=SLOTS - 1,
            slot_bytes=self.slot_bytes, length=FIRST_SLOT + LENGTH, bytes=FIRST_SLOT + BYTES,
            shortest=FRAME_MIN, longest=self.longest, ifindex=ifindex, a_run=A_RUN)
        return prog_load(encode(assemble(text, ["frames"]), [frames]), ProgType.SCHED_CLS,
                         name="xdpu_inject")


INJECTORS: dict[str, type[Injector]] = {"skb": SkbInjector, "live": Injector}  # by --stack
