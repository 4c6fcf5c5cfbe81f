"""xdpu capture: packets of a run with their verdicts, into a pcapng file or a pipe, or as lines.

The run's workers write pcapng blocks (dataplane/capture.py), which go into the file as they are;
without a file they are printed, a line a packet (capture_text.py).
However it ends (a signal, enough packets, a full disk, the end of the run), the file is whole and
has all that was captured, or it is said what is missing.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from argparse import Namespace
from pathlib import Path

from control.capture_output import Output
from control.capture_text import TextOutput
from control.captures import to_assembly
from control.remote import find
from control.server import ask
from control.signals import Interrupted, Signals
from control.watch import note
from dataplane.capture_lanes import LEAST_RING_BYTES, POINTS, Counts, LaneReader, Span
from dataplane.pcapfile import interface_block, section_block, statistics_block
from dataplane.rundir import Owner, RunDir
from xdp_runtime.errors import ConfigError, PortError

_FIRST_SLEEP_S, _LAST_SLEEP_S = 0.0005, 0.01
_RING_BYTES = 8 << 20
_GONE = 141  # as a shell says of a process that SIGPIPE ended
_POINT_NAMES = {number: name for name, number in POINTS.items()}


def run(args: Namespace) -> int:
    """Until a signal, `--count` packets, `--duration`, or the end of the run."""
    to_assembly(" ".join(args.filter))  # the run would refuse it, too
    one = find(args.iface)
    if args.hex and args.write is not None:
        raise ConfigError("-x", "is for packets that are printed", "leave out -x or -w")
    with Signals() as signals:
        try:
            with _output(args, one, signals) as out:
                return _capture(args, one, signals, out)
        except Interrupted as end:
            note(f"ended by signal {end.number} before it began")
            return 128 + end.number


def _output(args: Namespace, one: RunDir, signals: Signals) -> Output:
    if args.write is not None:
        return Output(args.write, signals)
    return TextOutput(signals, _targets(one), args.json, args.hex)


def _targets(one: RunDir) -> dict[str, str]:
    """What redirects name by number, by name.  A port that comes later stays a number."""
    try:
        known = json.loads((one.path / "names.json").read_text())
    except OSError:
        return {}  # it is just ending: nothing will be captured
    return {f"ifindex {number}": name for name, number in known["interfaces"].items()} | {
        f"ring {number}": f"ring {name}" for name, number in known["rings"].items()}


def _capture(args: Namespace, one: RunDir, signals: Signals, out: Output) -> int:
    signals.check()
    answer = ask(one.path, {
        "do": "capture", "reader": str(Owner.current()), "at": list(args.at),
        "ports": [] if one.name == args.iface else [args.iface],
        "filter": " ".join(args.filter), "snap_bytes": args.snaplen or 1 << 18,
        "sample": args.sample, "ring_bytes": 1 << (_buffer(args) - 1).bit_length()})
    reader = LaneReader(Path(answer["path"]))
    recorder = Recorder(reader, out, " ".join(args.filter), args.snaplen, args.count)
    code = 0
    try:
        try:
            recorder.begin()
            where = f", in {out.path}" if args.write is not None else ""
            note(f"capturing packets of {args.iface} at {' and '.join(args.at)}{where}")
            _record(recorder, signals, args.duration)
        finally:
            if not reader.closed and not reader.abandoned:
                _end(one, answer["number"])
        recorder.drain()
        recorder.end()
        _tell(args, recorder)
    except BrokenPipeError:
        note(f"nobody reads {out.path} any more")
        code = _GONE
    finally:
        abandoned, ended = reader.abandoned, reader.closed and recorder.ran_out
        reader.close()
    if abandoned:
        raise PortError(f"run {one.name}", "died while its packets were captured",
                        f"{out.path} has those until then")
    if ended:
        note(f"run {one.name} has ended")
    return code


def _buffer(args: Namespace) -> int:
    """Little for what is printed: whoever presses Ctrl-C does not want thousands of lines more."""
    wanted: int | None = args.buffer
    return wanted or (LEAST_RING_BYTES if args.write is None else _RING_BYTES)


def _end(one: RunDir, number: int) -> None:
    """A run that is just ending ends its captures as well."""
    try:
        ask(one.path, {"do": "capture_end", "number": number})
    except PortError:
        if one.owner_alive():
            raise


class Recorder:
    """What is between the lanes and the file."""

    def __init__(self, reader: LaneReader, out: Output, filter_text: str, snap_bytes: int,
                 count: int) -> None:
        self.reader, self._out, self._filter = reader, out, filter_text
        self._snap_bytes, self._left = snap_bytes, count or None
        self._count, self._described = count, 0
        self._began_ns = time.time_ns()
        self.ran_out = False  # the run ended first

    def begin(self) -> None:
        self._out.write(section_block())

    @property
    def enough(self) -> bool:
        return self._left == 0

    def pump(self) -> int:
        """Write what there is -> bytes."""
        self.reader.look()
        for name, point in self.reader.interfaces[self._described:]:
            where = _POINT_NAMES[point]
            self._out.write(interface_block(name, self._snap_bytes, f"{where} of the XDP program",
                                            self._filter))
            self._described += 1
        moved = 0
        for span in self.reader.spans():
            length = len(span.data) if self._left is None else self._enough_of(span)
            self._out.write(span.data[:length])
            self.reader.consume(span, length)
            moved += length
            if self.enough:
                break
        return moved

    def _enough_of(self, span: Span) -> int:
        """Bytes of the packets that are still to be counted."""
        at = 0
        while self._left and at < len(span.data):
            at += int(struct.unpack_from("=I", span.data, at + 4)[0])
            self._left -= 1
        return at

    def drain(self) -> None:
        while not self.enough and self.pump():
            pass

    def end(self) -> None:
        for number, interface in enumerate(self.reader.interfaces[:self._described]):
            counts = self.reader.counts(interface)
            self._out.write(statistics_block(number, (self._began_ns, time.time_ns()), counts.seen,
                                             counts.chosen, counts.lost))

    def total(self) -> Counts:
        """Of all interfaces; seen are packets, not packets at a point."""
        points = {point for _, point in self.reader.interfaces}
        total = sum((self.reader.counts(one) for one in self.reader.interfaces), Counts())
        return Counts(total.seen // max(len(points), 1), total.chosen, total.lost)

    def captured(self) -> int:
        total = self.total()
        return total.chosen - total.lost if self._left is None else self._count - self._left


def _record(recorder: Recorder, signals: Signals, duration_s: float) -> None:
    end_s = time.monotonic() + duration_s if duration_s else float("inf")
    sleep_s, reader = _FIRST_SLEEP_S, recorder.reader
    while not signals.caught and time.monotonic() < end_s and not recorder.enough:
        ended = reader.closed or reader.abandoned  # before looking: what was there is still read
        if recorder.pump():
            sleep_s = _FIRST_SLEEP_S
        elif ended:
            recorder.ran_out = True
            return
        else:
            signals.wait(sleep_s)
            sleep_s = min(2 * sleep_s, _LAST_SLEEP_S)


def _tell(args: Namespace, recorder: Recorder) -> None:
    total, captured = recorder.total(), recorder.captured()
    if args.json:
        record = {"type": "summary", "captured": captured, "lost": total.lost, "seen": total.seen}
        print(json.dumps(record), file=sys.stderr if args.write == "-" else sys.stdout, flush=True)
        return
    lost = f"{total.lost:,} lost" + (", for which there was no room (--buffer, --sample, a filter, "
                                     "or -s N help)" if total.lost else "")
    note(f"{captured:,} packets captured, {lost}, {total.seen:,} seen")
