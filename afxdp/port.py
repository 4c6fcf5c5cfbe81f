"""AfxdpPort: an interface opened by AF_XDP, one socket and umem for each of its queues.

The program is attached first, because some drivers change their queues when XDP comes; then a
socket is bound to every queue, and only then the sockets go into the program's map: a failure on
the way leaves nothing behind, and no packet waits in a socket that nobody will read.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from typing import Protocol, Self

from afxdp import filter as packet_filter
from afxdp import interface, live_tx, native, redirect_program, rings, sg, tx_metadata, umem
from afxdp.hints import with_hints
from afxdp.interface import Interface
from afxdp.live_tx import LiveTx
from afxdp.map_filter import KeyShape
from afxdp.mirror import KeySet
from afxdp.queue import BindError, Queue, Shape, open_queue
from afxdp.redirect_program import QUEUES_MAX, RedirectProgram, Wanted
from afxdp.silence import Listener
from afxdp.umem import Umems
from dataplane import napi
from dataplane.napi import Deferral
from dataplane.port import PortKind, PortQueue
from xdp_runtime.errors import ConfigError, PortError

XDP_MODES = ("native", "generic", "auto")
COPY_MODES = ("auto", "copy", "zero-copy")
RING_SIZE_MIN, RING_SIZE_MAX = 64, 1 << 15
FRAMES_MAX, BUSY_POLL_MAX = 1 << 20, 65535
_LINK_BYTES = 18  # Ethernet with a VLAN tag
_NO_ZERO_COPY = (errno.EOPNOTSUPP, errno.EINVAL)


class Attached(Protocol):
    """What fills the sockets: a RedirectProgram, here or in the set-up process (granted.py)."""

    @property
    def mode(self) -> str:
        """"native" or "generic"."""

    @property
    def filters(self) -> bool: ...

    @property
    def left(self) -> int:
        """Packets that its filter left to the stack."""

    @property
    def sets(self) -> Mapping[str, KeySet]:
        """The sets of keys that its filter asks, by word, for somebody to fill (mirror.py)."""

    def check(self) -> None:
        """Raises PortError once it is not attached any more."""

    def close(self) -> None:
        """Detach it."""


class AfxdpPort:
    """See dataplane/port.py for the contract; `open` makes one."""

    kind: PortKind = rings.AFXDP

    def __init__(self, iface: Interface, program: Attached, opened: Sequence[Queue],
                 member: socket.socket | None, deferral: Deferral | None, mode: str,
                 live: LiveTx | None = None, kind: PortKind = rings.AFXDP) -> None:
        self.name, self.ifindex, self.mtu, self.mode = iface.name, iface.ifindex, iface.mtu, mode
        self.channels, self.opened = iface.channels, tuple(opened)
        self.kind = kind
        self.queues: Sequence[PortQueue] = [queue.port_queue for queue in opened]
        self.xdp_mode = program.mode  # native or generic
        self._program, self._member, self._deferral = program, member, deferral
        self._live = live
        self._gone = self._closed = self._said_unfit = False
        self.promiscuous = member is not None
        self._statistics: dict[str, int] = {}
        self._listener = Listener(self)

    @classmethod
    def open(cls, iface: str, queues: str | Sequence[int] = "all", mode: str = "native", *,
             copy_mode: str = "auto", frame_size: int = 4096, ring_size: int = 2048,
             need_wakeup: bool = True, promisc: bool = False, unaligned: bool = False,
             pages: str = "auto", frames: int = 0, busy_poll: int = 0,
             umems: Umems | None = None, wanted: str = "",
             shapes: Mapping[str, KeyShape] | None = None, frags: bool = False,
             passed: bool = False, tx: str = "xsk", hints: bool = False,
             checksums: bool = False) -> Self:
        """Take over queues of an interface in the calling thread's network namespace.

        `frames` of `frame_size` bytes for each queue, 0 for twice the ring; `pages` of the umem
        as umem.PAGES; `busy_poll` packets a call of the driver, 0 for interrupts; `umems` that
        other ports of the run share; `wanted` a filter (filter.py), what it does not match goes
        to the stack, and `shapes` of the maps it asks; `frags` for programs that take packets in
        several frames; `passed`: the umem can be given to another process; `tx` how packets leave
        (live_tx.py); `hints` for programs that ask for RX metadata (hints.py); `checksums` that a
        local sender left to hardware are finished on the way out (tx_metadata.py).  Raises
        ConfigError (an option is wrong), PortError or OutOfMemory (the host refuses); the interface
        is then as it was.
        """
        mode = "generic" if mode == "skb" else mode  # as iproute2 calls it
        zero_copy = copy_mode != "copy" and mode != "generic"
        shape = Shape(frame_size, ring_size, zero_copy, need_wakeup, unaligned, pages, frames,
                      busy_poll, frags)
        _check_options(queues, mode, copy_mode, shape)
        chosen = Wanted(packet_filter.parse(wanted), shapes or {}) if wanted else None
        native.load()
        if checksums and tx_metadata.kernel_takes_it():
            shape = replace(shape, metadata_bytes=tx_metadata.BYTES)
        with ExitStack() as undo:
            found = interface.query(iface)
            program = redirect_program.attach(found, mode, chosen, frags, hints)
            undo.callback(program.close)
            if program.mode == "generic":
                _refuse_zero_copy(copy_mode)
                shape = replace(shape, zero_copy=False)
            if not frags:
                _check_mtu(found, shape)
            found = interface.query(iface)  # virtio_net: other channels than before
            indices = _choose_queues(found, queues)
            opened, why_copy = _open_queues(found, indices, undo, copy_mode, shape,
                                            umems or Umems(len(indices), len(indices),
                                                           passed=passed))
            deferral = napi.defer(found.name, found.ifindex) if busy_poll else None
            if deferral is not None:
                undo.callback(deferral.restore)
            member = interface.make_promiscuous(found.ifindex) if promisc else None
            if member is not None:
                undo.callback(member.close)
            for queue in opened:
                program.admit(queue.index, queue.fd)
            text = _describe(found, program, indices, opened, why_copy)
            live, sent = live_tx.offer(found, opened, tx)
            if live is not None:
                undo.callback(live.close)
            text += f"; {sent}" if sent else ""
            if checksums:
                text += f"; {_finish_checksums(found, opened)}"
            if hints:
                text += f"; {program.hints}"
            if wanted:
                text += f"; only {wanted}, the rest stays with the stack"
                text += "".join(f"; {shape}" for shape in (shapes or {}).values())
            if deferral is not None:
                text += f"; {deferral.said}"
            port = cls(found, program, opened, member, deferral, text, live,
                       kind_of(frags, tx, hints, checksums))
            undo.pop_all()
            return port

    def statistics(self) -> dict[str, int]:
        """Summed over the queues; after close, what they were then.

        A worker that is too slow shows as `rx_fill_ring_empty_descs`: all frames wait in RX, and
        the kernel drops what comes without copying it first.
        """
        if not self._closed:
            total: Counter[str] = Counter()
            for queue in self.opened:
                total.update(queue.statistics())
            self._statistics = dict(total)
            if self._live is not None:
                self._statistics |= self._live.statistics()
            if self._program.filters:
                self._statistics["filtered"] = self._program.left
        return dict(self._statistics)

    @property
    def sets(self) -> Mapping[str, KeySet]:
        """What its filter asks of maps, for somebody to fill (mirror.py)."""
        return self._program.sets

    def check(self) -> None:
        """Raises PortError for what the port does not survive."""
        if not self._closed:
            self._program.check()
            if self._live is not None:
                self._live.check()

    def unfit(self, mtu: int) -> str:
        """What this MTU does to packets, "" if nothing."""
        shape = self.opened[0].shape
        if shape.frags or mtu + _LINK_BYTES <= shape.room:
            return ""
        mend = "" if shape.frame_size >= 4096 else "--frame-size 4096, or "
        return "the kernel drops packets longer than the " \
               f"{shape.room} bytes a frame has room for (rx_dropped): ip link set " \
               f"dev {self.name} mtu {shape.room - _LINK_BYTES}, or " \
               f'start anew with {mend}the program in SEC("xdp.frags")'

    def _unfit_advice(self) -> str:
        """Once the first such packet was dropped."""
        dropped = self.statistics()["rx_dropped"]
        if self._said_unfit or not dropped:
            return ""
        with suppress(PortError):
            found = interface.query(interface.name_of(self.ifindex))
            if self.unfit(found.mtu):
                self._said_unfit = True
                return f"{found.name} has dropped {dropped} packets so far, with an MTU of " \
                       f"{found.mtu}: {self.unfit(found.mtu)}"
        return ""

    def silence(self) -> list[str]:
        """Why it may have received nothing so far."""
        return [] if self._closed else self._listener.explain()

    def advice(self) -> str:
        """What the user should know of packets that do not come in, or of how they leave, or "";
        asked now and then."""
        if self._closed:
            return ""
        return (self._live.said() if self._live is not None else "") or self._unfit_advice() \
            or self._listener.advice()

    def finished(self) -> bool:
        """True once the interface was removed: the kernel then takes the sockets off it."""
        if not self._closed and not self._gone:
            self._gone = any(queue.error() == errno.ENETDOWN for queue in self.opened)
        return self._closed or self._gone

    def close(self) -> None:
        """Detach, then close the sockets.  The worker must have stopped."""
        if self._closed:
            return
        self.statistics()
        self._closed = True
        with ExitStack() as stack:
            for queue in self.opened:
                stack.callback(queue.close)
            if self._live is not None:
                stack.callback(self._live.close)
            if self._member is not None:
                stack.callback(self._member.close)
            if self._deferral is not None:
                stack.callback(self._deferral.restore)
            stack.callback(self._program.close)
        self.queues = []


@cache
def kind_of(frags: bool, tx: str = "xsk", hints: bool = False,
            checksums: bool = False) -> PortKind:
    kind = sg.AFXDP_SG if frags else rings.AFXDP if tx == "xsk" else live_tx.AFXDP_LIVE
    kind = tx_metadata.with_checksums(kind) if checksums else kind
    return with_hints(kind) if hints else kind


def _finish_checksums(found: Interface, opened: Sequence[Queue]) -> str:
    asked, who = tx_metadata.can_ask(found.ifindex, bool(opened[0].shape.metadata_bytes),
                                     any(queue.is_zero_copy() for queue in opened),
                                     opened[0].shape.frags)
    for queue in opened:
        queue.store(rings.METADATA_ASKS, int(asked))
    return f"checksums left to hardware are finished {who}"


def _check_mtu(found: Interface, shape: Shape) -> None:
    """What a frame does not hold would be dropped by the kernel without a word."""
    room = shape.room
    if found.mtu + _LINK_BYTES > room:
        raise PortError(found.name, f"its MTU of {found.mtu} makes packets that a frame of "
                        f"{shape.frame_size} bytes has no room for",
                        f"ip link set dev {found.name} mtu {room - _LINK_BYTES}, or put the "
                        'program in SEC("xdp.frags")')


def _check_options(queues: str | Sequence[int], mode: str, copy_mode: str, shape: Shape) -> None:
    if mode not in XDP_MODES:
        raise ConfigError(f"mode {mode}", f"AF_XDP knows {', '.join(XDP_MODES)}")
    if copy_mode not in COPY_MODES:
        raise ConfigError(f"copy mode {copy_mode}", f"one of {', '.join(COPY_MODES)}")
    if mode == "generic":
        _refuse_zero_copy(copy_mode)
    umem.check(shape.layout)
    size = shape.ring_size
    if size & (size - 1) or not RING_SIZE_MIN <= size <= RING_SIZE_MAX:
        raise ConfigError(f"ring size {size}", f"a power of two from {RING_SIZE_MIN} to "
                          f"{RING_SIZE_MAX} is needed")
    if shape.frames & (shape.frames - 1) or not 2 * size <= shape.frames <= FRAMES_MAX:
        raise ConfigError(f"{shape.frames} frames", f"a power of two from {2 * size}, two rings' "
                          f"worth, to {FRAMES_MAX} is needed")
    if not 0 <= shape.busy_poll <= BUSY_POLL_MAX:
        raise ConfigError(f"busy-poll budget {shape.busy_poll}", f"1 to {BUSY_POLL_MAX} packets")
    if isinstance(queues, str):
        if queues != "all":
            raise ConfigError(f"queues {queues}", 'give "all" or a list of numbers')
    elif not queues or len(set(queues)) != len(queues) or min(queues) < 0:
        raise ConfigError(f"queues {list(queues)}", "each queue once, and at least one")


def _refuse_zero_copy(copy_mode: str) -> None:
    if copy_mode == "zero-copy":
        raise ConfigError("copy mode zero-copy", "the driver must run XDP itself for it",
                          "use --xdp-mode native")


def _choose_queues(found: Interface, queues: str | Sequence[int]) -> list[int]:
    indices = list(range(found.channels or 1)) if isinstance(queues, str) else list(queues)
    highest = max(indices)
    if highest >= QUEUES_MAX or (found.channels and highest >= found.channels):
        raise PortError(f"queue {highest} of {found.name}",
                        f"the interface has {found.channels or QUEUES_MAX} receive queues, "
                        "numbered from 0", f"ethtool -L {found.name} combined N, where it can")
    return indices


def _open_queues(found: Interface, indices: Sequence[int], undo: ExitStack, copy_mode: str,
                 shape: Shape, umems: Umems) -> tuple[list[Queue], str]:
    """The queues, and why they copy.  What the driver says of the first one holds for all."""
    opened: list[Queue] = []
    why = "" if shape.zero_copy or copy_mode == "copy" else "generic mode always copies"
    for position, index in enumerate(indices):
        try:
            try:
                queue = open_queue(found.name, index, shape, umems, position)
            except BindError as error:
                if not shape.zero_copy or copy_mode != "auto" or opened \
                        or error.code not in _NO_ZERO_COPY:
                    raise
                why = f"{found.driver} offers no zero-copy: {error.name}"
                shape = replace(shape, zero_copy=False)
                queue = open_queue(found.name, index, shape, umems, position)
        except BindError as error:
            raise _bind_error(found, index, shape, error) from error
        undo.callback(queue.close)
        opened.append(queue)
    return opened, why


def _bind_error(found: Interface, index: int, shape: Shape, error: BindError) -> PortError:
    what = f"queue {index} of {found.name}"
    match error.code:
        case errno.EBUSY:
            return PortError(what, "is already bound", "another program has an AF_XDP socket on "
                             "it: end that, or choose other queues")
        case errno.EINVAL if not shape.zero_copy:
            return PortError(what, "the interface has no such queue, or its queues changed",
                             f"see: ethtool -l {found.name}")
        case errno.EOPNOTSUPP | errno.EINVAL:
            return PortError(what, f"{found.driver} offers no zero-copy: {error.name}",
                             "use --copy-mode auto or copy")
        case errno.ENETDOWN | errno.ENODEV:
            return PortError(what, "the interface went down", f"ip link set dev {found.name} up")
    return PortError(what, f"cannot be bound: {os.strerror(error.code)}")


def _describe(found: Interface, program: RedirectProgram, indices: Sequence[int],
              opened: Sequence[Queue], why_copy: str) -> str:
    shape = opened[0].shape
    copy = "zero-copy" if all(queue.is_zero_copy() for queue in opened) else "copy"
    wakeup = "need_wakeup" if shape.need_wakeup else "no need_wakeup"
    mode = program.mode + (f" (not native: {program.why})" if program.why else "")
    pieces = " multi-buffer" if shape.frags else ""
    text = f"afxdp {mode} {copy}{pieces} {wakeup}, {_ranges(indices)}"
    if found.channels == 0:
        text += f" ({found.driver} does not say how many there are)"
    elif len(indices) < found.channels:
        text += f" of {found.channels}"
    return text + (f" ({why_copy})" if why_copy else "") + _describe_umem(opened)


def _describe_umem(opened: Sequence[Queue]) -> str:
    """; umem of 16 MiB, 4096-byte frames, no huge pages free, shared by 2 queues; busy poll 64"""
    shape = opened[0].shape
    umems = list({id(queue.umem): queue.umem for queue in opened}.values())
    size = sum(umem.size_bytes for umem in umems) >> 20
    text = f"; umem of {size} MiB, {'unaligned ' if shape.unaligned else ''}" \
           f"{shape.frame_size}-byte frames, {umems[0].said}"
    if any(umem.users > 1 for umem in umems):
        text += f", shared by {max(umem.users for umem in umems)} queues"
    alone = next((queue.alone for queue in opened if queue.alone), "")
    if alone:
        text += f", one for each queue because they cannot share: {alone}"
    return text + (f"; busy polling, {shape.busy_poll} packets a call" if shape.busy_poll else "")


def _ranges(indices: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "queues 0-2,5" """
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    spans = ",".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)
    return f"{'queue' if len(indices) == 1 else 'queues'} {spans}"
