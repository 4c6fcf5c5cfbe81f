"""PcapPort: packets from a capture file, and every packet with its verdict into another.

The input, pcap or pcapng, is mapped and read by compiled code (pcap_reader.py).  The output is
pcapng (pcap_writer.py): each packet as the program left it, in input order, with the time stamp
of its input and the verdict twice: for people as comment ("XDP_REDIRECT ifindex 7"), for tools as
the option epb_verdict.  Packets that others send out of this port are there too, "sent here".

The output is a valid file at any time: it grows by whole blocks, and after a failed write `close`
cuts it behind the last whole one.  It lags behind by up to 256 KiB until the input ends.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dataplane import pcap_queue as layout
from dataplane import pcapng_verdict
from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.capture_put import WORDS
from dataplane.pcap_reader import RECEIVE_PCAP, RECEIVE_PCAPNG
from dataplane.pcap_writer import FLUSH, RELEASE, SEND, TRANSMIT
from dataplane.pcapfile import complaint, map_file, pcapng_header, read_header
from dataplane.port import BATCH_MAX, PortKind, PortQueue
from xdp_runtime.errors import ConfigError, PortError
from xdp_runtime.state import HEADROOM_BYTES

_LOSSES = "rx_too_long", "rx_too_short"
PCAP = PortKind("pcap", RECEIVE_PCAP, RELEASE, TRANSMIT, SEND, FLUSH, timestamps=True,
                losses=_LOSSES)
PCAPNG = PortKind("pcapng", RECEIVE_PCAPNG, RELEASE, TRANSMIT, SEND, FLUSH, timestamps=True,
                  losses=_LOSSES)

_OUT_BYTES = 1 << 20
_COMMENTS = [*WORDS, "sent here"]
_OWN_ORDER = "<" if struct.pack("=H", 1)[0] else ">"


def kind_of(source: str | Path) -> PortKind:
    """Of a port that reads this file, "": none.  Raises PortError."""
    if not source:
        return PCAPNG
    with map_file(source) as content:
        return PCAP if read_header(source, content).format == "pcap" else PCAPNG


class PcapPort:
    """`source` None has no input (an output only); `out` None writes nothing; "-" is stdout."""

    def __init__(self, source: str | Path | None, out: str | Path | None = None,
                 frame_size: int = 4096, ifindex: int = 0) -> None:
        self.name = str(source if source is not None else out)
        self.ifindex = ifindex
        self.kind: PortKind = PCAPNG
        longest = frame_size - HEADROOM_BYTES - SKB_SHARED_INFO_BYTES
        self.mtu = longest - 14
        if longest < 64:
            raise ConfigError(f"{self.name}", f"a frame size of {frame_size} leaves no packet room",
                              "use 4096")
        self._content: Block | None = None
        self._fd = -1
        self._out_name = str(out)
        self._buffers = Block(BATCH_MAX * frame_size)
        self._out = Block(max(_OUT_BYTES, 4 * frame_size))
        self._q = Block(layout.QUEUE_BYTES)
        self._final: dict[str, int] | None = None
        self._error: PortError | None = None
        try:
            self._q.set(layout.FRAMES, self._buffers.address)
            self._q.set(layout.FRAME_SIZE, frame_size)
            self._q.set(layout.LONGEST, longest)
            self._q.set(layout.STOPPED, 1)
            self.mode = "no input"
            if source is not None:
                self._open_source(source)
            if out is not None:
                self._open_out(source, out)
        except BaseException:
            self.close()
            raise
        self.queues: Sequence[PortQueue] = [PortQueue(0, self._q.address, -1)]

    def _open_source(self, source: str | Path) -> None:
        content = map_file(source)
        capture = read_header(source, content)
        self._content = Block(len(content), content)
        self.kind = PCAP if capture.format == "pcap" else PCAPNG
        self.mode = f"{capture.format} file, mapped"
        self._q.set(layout.CONTENT, self._content.address)
        self._q.set(layout.CURSOR, capture.first_record)
        self._q.set(layout.CONTENT_BYTES, len(content))
        self._q.set(layout.SWAPPED, int(capture.order != _OWN_ORDER))
        self._q.set(layout.FRACTION_NS, capture.fraction_ns)
        self._q.set(layout.STOPPED, 0)

    def _open_out(self, source: str | Path | None, out: str | Path) -> None:
        self._q.write(layout.COMMENTS, pcapng_verdict.words(_COMMENTS))
        header = pcapng_header(Path(self.name).name)
        try:
            if source is not None and os.path.exists(out) and os.path.samefile(source, out):
                raise PortError(str(out), "it is the input too", "write to another file")
            if str(out) == "-":
                self._fd = os.dup(1)
            else:
                self._fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            while header:
                header = header[os.write(self._fd, header):]
        except OSError as error:
            raise PortError(str(out), f"cannot be written: {error.strerror or error}") from error
        self._q.set(layout.OUT, self._out.address)
        self._q.set(layout.OUT_BYTES, self._out.size_bytes)
        self._q.set(layout.OUT_FD, self._fd)

    def statistics(self) -> dict[str, int]:
        """`rx_too_long` and `rx_too_short` (for Ethernet) were read and not delivered,
        `record_lost` are not in the output."""
        if self._final is not None:
            return self._final
        names = {"rx_too_long": layout.TOO_LONG, "rx_too_short": layout.TOO_SHORT,
                 "record_lost": layout.OUT_LOST}
        return {name: self._q.get(offset) for name, offset in names.items()}

    def error(self) -> PortError | None:
        """Why the port stopped before the end of its input, or lost output."""
        if self._final is not None:
            return self._error
        q = self._q
        if code := q.get(layout.OUT_ERRNO):
            lost = q.get(layout.OUT_LOST)
            return PortError(self._out_name, f"cannot be written: {os.strerror(code)}",
                             f"{lost} packets are missing in it" if lost else "")
        if damage := q.get(layout.DAMAGE):
            return complaint(self.name, damage, q.get(layout.PACKETS) + 1,
                             q.get(layout.DAMAGE_VALUE), q.get(layout.DAMAGE_LIMIT))
        return None

    def finished(self) -> bool:
        return self._final is not None or self._q.get(layout.STOPPED) != 0

    def close(self) -> None:
        """Write what is buffered.  `statistics` and `error` stay readable."""
        if self._final is not None:
            return
        self._drain()
        if self._fd >= 0:
            os.close(self._fd)
        self._error = self.error()
        self._final = self.statistics()
        for block in (self._content, self._buffers, self._out, self._q):
            if block is not None:
                block.close()

    def _drain(self) -> None:
        """What compiled code does in pcap_drain, for the rest of the buffer."""
        q = self._q
        used, written = q.get(layout.OUT_USED), q.get(layout.OUT_WRITTEN)
        while written < used and not q.get(layout.OUT_ERRNO):
            try:
                written += os.write(self._fd, self._out.read(written, used - written))
            except OSError as error:
                q.set(layout.OUT_ERRNO, error.errno or 5)
        if written < used:
            self._cut(used, written)

    def _cut(self, used: int, written: int) -> None:
        """A write failed half-way: end the file behind its last whole block."""
        whole, lost = 0, 0
        while whole < used:
            (size,) = struct.unpack("=I", self._out.read(whole + 4, 4))
            if whole + size > written:
                break
            whole += size
        at = whole
        while at < used:
            at += struct.unpack("=I", self._out.read(at + 4, 4))[0]
            lost += 1
        self._q.set(layout.OUT_LOST, self._q.get(layout.OUT_LOST) + lost)
        with suppress(OSError):
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - (written - whole))
