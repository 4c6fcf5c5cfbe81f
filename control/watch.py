"""Watching a run: status lines, what the program says, and whether all is still well.

One line an interval is appended to standard output (JSON: one object a line); remarks go to
standard error.  Ctrl-\\ adds a row for each worker and queue, and what only the port knows.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from control.losses import ABORTED, Losses, all_of, grown, of_ports, words
from control.signals import Signals
from control.trace_aborted import AbortedPrinter
from dataplane.engine import Engine
from dataplane.port import Port
from dataplane.stats import COUNTERS
from xdp_runtime.helpers.trace import read_trace

_COLUMNS = (("rx_packets", "rx"), ("pass", "pass"), ("drop", "drop"), ("tx", "tx"),
            ("redirect", "redir"), ("aborted", "aborted"))
NOTHING = dict.fromkeys(COUNTERS, 0)
_TICK_S = 0.25
_SILENCE_S = 5.0

Counters = Mapping[str, int]


def note(text: str) -> None:
    """A remark on standard error; nobody listening is no error."""
    _remark(f"xdpu: {text}")


_unsaid = 0


def _remark(line: str) -> None:
    """What would have to wait for its reader is left out, and counted for when there is one."""
    global _unsaid
    with contextlib.suppress(OSError, ValueError):
        if not is_read(sys.stderr):
            _unsaid += 1
            return
        if _unsaid:
            print(f"xdpu: {_unsaid} remarks were left out: standard error was not read",
                  file=sys.stderr)
            _unsaid = 0
        print(line, file=sys.stderr, flush=True)


def is_read(stream: Any) -> bool:
    """Would a line go through?  A reader that has stopped must not stop us, too.

    A pipe is writable while it has room for PIPE_BUF (4096) bytes, pipe(7).
    """
    try:
        return bool(select.select([], [stream], [], 0)[1])
    except (OSError, ValueError, AttributeError):  # no descriptor: nothing that could fill up
        return True


class Watch:
    """Looks at an engine until a signal, the end of `duration_s`, or of its input."""

    def __init__(self, engine: Engine, ports: Callable[[], Sequence[Port]], signals: Signals, *,
                 name: str, interval_s: float, duration_s: float = 0.0, as_json: bool = False,
                 trace: bool = False, tick_s: float = _TICK_S,
                 checks: Sequence[Callable[[], None]] = (),
                 silence: Callable[[], str] | None = None, out: Any = None,
                 trace_aborted: int = 0,
                 wakers: Callable[[], Iterable[int]] = tuple) -> None:
        self.wakers = wakers  # descriptors: `checks` have something to do when one is readable
        self.engine, self.ports_now = engine, ports
        self.signals, self.name = signals, name
        self.interval_s, self.duration_s, self.as_json = interval_s, duration_s, as_json
        self.trace, self.tick_s, self.checks, self.silence = trace, tick_s, checks, silence
        self.out = out or sys.stdout
        self.started_s = self.ended_s = time.monotonic()
        self._flows = [engine.stats.flow(i) for i in range(len(engine.stats.flows))]
        self._seen = [0] * len(engine.workers)
        self._program = engine.program
        self._at_s = self.started_s
        self._losses: Losses = {}
        self._invalid = 0
        self.show_aborted = AbortedPrinter(engine, trace_aborted, note)
        self._said: set[str] = set()

    def run(self) -> None:
        """Raises what a worker or one of `checks` raised; Ctrl-C and the like end it in order."""
        self.started_s = self._at_s = time.monotonic()
        due_s = self.started_s + self.interval_s
        end_s = self.started_s + self.duration_s if self.duration_s else float("inf")
        try:
            while not self.signals.caught and self.engine.running:
                now_s = time.monotonic()
                if now_s >= end_s:
                    break
                self.signals.wait(min(due_s, end_s, now_s + self.tick_s) - now_s, *self.wakers())
                self._look()
                if time.monotonic() >= due_s:
                    self._status()
                    due_s += self.interval_s * max(1, -(-(time.monotonic() - due_s)
                                                        // self.interval_s))
        finally:
            self.ended_s = time.monotonic()
        self._raise_worker_error()

    def _look(self) -> None:
        self._raise_worker_error()
        if self.trace:
            self.print_trace()
        self.show_aborted()
        for check in self.checks:
            check()
        if self.silence is not None:
            if self.engine.stats.total()["rx_packets"]:
                self.silence = None
            elif time.monotonic() - self.started_s >= _SILENCE_S:
                note(f"no packet in {_SILENCE_S:g} s: {self.silence()}")
                self.silence = None

    def _raise_worker_error(self) -> None:
        for worker in self.engine.workers:
            if worker.error is not None:
                raise worker.error

    def print_trace(self) -> None:
        if self._program is not self.engine.program:  # replaced: its workers' memory is new
            self._program, self._seen = self.engine.program, [0] * len(self._seen)
        for worker in self.engine.workers:
            memory = self.engine.program.worker_bytes(worker.number)
            texts, self._seen[worker.number] = read_trace(memory, self._seen[worker.number])
            for text in texts:
                _remark(f"trace {worker.number}: {text.rstrip()}")

    # ---- status lines ----------------------------------------------------------------------------
    def _is_read(self) -> bool:
        readable = is_read(self.out)
        if not readable and "unread" not in self._said:
            self._said.add("unread")
            note("standard output is not read: status lines are left out until it is")
        return readable

    def _status(self) -> None:
        now_s = time.monotonic()
        passed_s, self._at_s = now_s - self._at_s, now_s
        stats = self.engine.stats
        flows = [stats.flow(i) for i in range(len(stats.flows))]
        new_flows = len(flows) - len(self._flows)
        rates = [per_second(new, old, passed_s) for new, old in zip(
            flows, self._flows + [dict.fromkeys(COUNTERS, 0)] * new_flows, strict=True)]
        self._flows = flows
        total, rate = stats.total(), sum_up(rates)
        losses = of_ports(self.ports_now())
        lost = all_of(NOTHING, grown(losses, self._losses)) / max(passed_s, 1e-9)
        self._losses = losses
        extended = self.signals.quits % 2 == 1
        if not self._is_read():
            pass
        elif self.as_json:
            record: dict[str, object] = {
                "type": "status", "ts": round(time.time(), 3), "name": self.name,
                "interval_s": round(passed_s, 3), "per_second": rate, "total": total,
                "lost_per_second": round(lost + all_of(rate, {}), 1), "lost_by_ports": losses}
            if extended:
                record["flows"] = [
                    {"worker": f.worker, "port": f.port, "queue": f.queue, "per_second": r,
                     "total": t} for f, r, t in zip(stats.flows, rates, flows, strict=True)]
                record["ports"] = {p.name: p.statistics() for p in self.ports_now()}
            print(json.dumps(record), file=self.out, flush=True)
        else:
            print(status_line(self.name, rate, lost), file=self.out)
            if extended:
                for flow, one in zip(stats.flows, rates, strict=True):
                    title = f"  worker {flow.worker} {flow.port}:{flow.queue}"
                    print(status_line(title, one), file=self.out)
                for port in self.ports_now():
                    print(f"  {port.name}: {say_counters(port.statistics())}", file=self.out)
            self.out.flush()
        for port in self.ports_now():
            advice: Callable[[], str] | None = getattr(port, "advice", None)
            if advice is not None and (text := advice()) and text not in self._said:
                self._said.add(text)
                note(text)
        self.say_missing_ports()
        invalid = sum(total[name] for name in ABORTED)
        if invalid > self._invalid:
            note(describe_aborted(self.engine))
            self._invalid = invalid

    def say_missing_ports(self) -> None:
        """Interfaces and workers that redirects name and that are not part of the run, each
        once."""
        texts = [f"packets redirected to {_interface(number)} are lost: it is not part of this "
                 "run (--iface, or xdpu port add)"
                 for number in {worker.no_port for worker in self.engine.workers} - {0}]
        if self.engine.stats.total()["cpu_no_worker"]:
            last = len(self.engine.workers) - 1
            texts.append("packets redirected by a CPUMAP to workers that do not run are lost: "
                         + (f"there are 0 to {last}" if last else "there is 0"))
        for text in texts:
            if text not in self._said:
                self._said.add(text)
                note(text)


def _interface(number: int) -> str:
    with contextlib.suppress(OSError, OverflowError):
        return f"interface {number}, {socket.if_indextoname(number)},"
    return f"interface {number}, which does not exist here,"


def sum_up(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(rate[name] for rate in rates) for name in rates[0]} if rates else {}


def per_second(new: Counters, old: Counters, passed_s: float) -> dict[str, float]:
    return {name: round((value - old[name]) / max(passed_s, 1e-9), 1)
            for name, value in new.items()}


def status_line(title: str, rate: Mapping[str, float], lost_by_ports: float = 0.0) -> str:
    """eth0  1,234,567 rx/s  1,234,000 pass/s  0 drop/s ..."""
    cells = [f"{rate[name]:>11,.0f} {word}/s" for name, word in _COLUMNS]
    cells.append(f"{all_of(rate, {}) + lost_by_ports:>11,.0f} lost/s")
    return f"{title:<16}" + "".join(cells)


def say_counters(counters: Counters) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in counters.items()) or "no counters"


def describe_aborted(engine: Engine) -> str:
    """Which programs aborted how many packets, and why."""
    rows = (f"{count:,} of program {name}: {reason}"
            for (name, reason), count in sorted(engine.aborted().items()))
    return f"aborted packets: {'; '.join(rows)}"


# ---- the end -------------------------------------------------------------------------------------

def summary_record(name: str, program: str, duration_s: float, total: Counters,
                   ports: Mapping[str, Counters], losses: Losses) -> dict[str, object]:
    return {"type": "summary", "ts": round(time.time(), 3), "name": name, "program": program,
            "duration_s": round(duration_s, 3), "total": dict(total),
            "lost": all_of(total, losses), "lost_by_ports": losses,
            "ports": {port: dict(counters) for port, counters in ports.items()}}


def summary_text(duration_s: float, total: Counters, ports: Mapping[str, Counters],
                 losses: Losses) -> str:
    rows: list[tuple[str, str]] = [
        ("Duration", f"{duration_s:.1f}s"),
        ("Packets received", f"{total['rx_packets']:,}"),
        ("Average packets/s", f"{total['rx_packets'] / max(duration_s, 1e-9):,.0f}"),
        ("Packets passed", f"{total['pass']:,}"),
        ("Packets dropped", f"{total['drop']:,}"),
        ("Packets transmitted", f"{total['tx']:,}"),
        ("Packets redirected", f"{total['redirect']:,}"),
        ("Packets aborted", f"{total['aborted']:,}"),
    ]
    if total["stack_packets"]:
        rows.append(("Sent by the stack", f"{total['stack_packets']:,}"))
    rows += [(f"  {text}", f"{total[name]:,}") for name, text in ABORTED.items() if total[name]]
    rows.append(("Packets lost", f"{all_of(total, losses):,}"))
    rows += [(f"  {text}", f"{count:,}") for text, count in words(total, losses)]
    for port, counters in ports.items():
        rows += [(f"  {port}: {name}", f"{value:,}") for name, value in counters.items() if value]
    width = max(len(label) for label, _ in rows) + 2
    return "".join(f"{label:<{width}}: {value}\n" for label, value in rows)
