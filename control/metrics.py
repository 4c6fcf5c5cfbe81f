"""xdpu metrics: the counters of all runs for Prometheus, printed once or served over HTTP.

Names follow its conventions: base units, `_total` for counters.  What only a run's ports know is
asked of the run itself; one that does not answer is shown without.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from control.losses import LOST
from control.server import ask
from control.signals import Signals
from control.status import describe_run
from control.watch import note
from dataplane import rundir
from dataplane.stats import BUCKETS, Latency, Stats
from xdp_runtime.errors import ConfigError, XdpuError

_VERDICTS = ("aborted", "drop", "pass", "tx", "redirect")
_COUNTS = {  # counter: (metric, help)
    "rx_packets": ("xdpu_receive_packets_total", "Packets received and run through the program."),
    "rx_bytes": ("xdpu_receive_bytes_total", "Bytes of those packets."),
    "tx_bytes": ("xdpu_transmit_bytes_total", "Bytes sent by TX and REDIRECT."),
    "unmeasured": ("xdpu_unmeasured_packets_total", "Packets received and sent whose bytes nobody "
                   "counted."),
    "stack_packets": ("xdpu_stack_packets_total", "Frames that the kernel's stack has sent."),
    "stack_bytes": ("xdpu_stack_bytes_total", "Bytes of those frames."),
    "batches": ("xdpu_batches_total", "Receive calls that brought something."),
    "idle_polls": ("xdpu_sleeps_total", "Times a worker went to sleep."),
}
_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[dict[str, Any], float]


def run(args: Namespace) -> int:
    if args.listen is None:
        print(collect(), end="")
        return 0
    host, port = args.listen
    try:
        server = (_Server6 if ":" in host else ThreadingHTTPServer)((host, port), _Handler)
    except OSError as error:
        raise ConfigError(f"--listen {host}:{port}", error.strerror or str(error),
                          "choose an address of this machine and a free port") from error
    with Signals() as signals, server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        shown = f"[{host}]" if ":" in host else host
        note(f"metrics at http://{shown}:{server.server_address[1]}/metrics")
        while not signals.caught:
            signals.wait(3600)
        server.shutdown()
        thread.join()
    return 0


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/metrics"):
            self.send_error(404)
            return
        text = collect().encode()
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a scrape would drown what matters."""


def collect() -> str:
    """The exposition text of all runs."""
    families: dict[str, tuple[str, str, list[Sample]]] = {}

    def add(metric: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        families.setdefault(metric, (kind, text, []))[2].extend(samples)

    for one in rundir.runs():
        if one.owner() is None:
            continue
        known = describe_run(one)
        run = {"run": one.name}
        add("xdpu_up", "gauge", "1 while the run's process lives.", [(run, int(known["alive"]))])
        if not known["alive"]:
            continue
        add("xdpu_info", "gauge", "What runs.", [(run | {
            "program": known["program"], "pid": known["pid"]}, 1)])
        try:
            stats = Stats.open(one.path / "stats")
        except (OSError, ValueError):
            continue
        flows = [(run | {"worker": f.worker, "port": f.port, "queue": f.queue}, stats.flow(i))
                 for i, f in enumerate(stats.flows)]
        for counter, (metric, text) in _COUNTS.items():
            add(metric, "counter", text, [(labels, c[counter]) for labels, c in flows])
        add("xdpu_verdicts_total", "counter", "What the program decided.", [
            (labels | {"verdict": v}, c[v]) for labels, c in flows for v in _VERDICTS])
        add("xdpu_lost_packets_total", "counter", "Packets that did not get where they should.", [
            (labels | {"reason": reason}, c[reason]) for labels, c in flows for reason in LOST])
        add("xdpu_batch_seconds", "histogram", "From receiving a batch to having passed it on, "
            "sampled.", _histogram(run, stats.latency()))
        with contextlib.suppress(XdpuError):
            add("xdpu_port_counter", "counter", "Counters that only a port's driver has.", [
                (run | {"port": port, "counter": name}, value)
                for port, counters in ask(one.path, {"do": "counters"}).items()
                for name, value in counters.items()])
            add("xdpu_port_lost_packets_total", "counter", "Packets lost in a port, which no other "
                "counter of losses has.", [
                (run | {"port": port, "reason": name}, value)
                for port, counters in ask(one.path, {"do": "losses"}).items()
                for name, value in counters.items()])
    return "".join(_lines(families))


def _histogram(run: dict[str, Any], latency: Latency) -> Iterator[Sample]:
    """Cumulative buckets, as Prometheus has them; from 256 ns to 1 s."""
    seen = 0
    for bucket in range(BUCKETS):
        seen += latency.counts[bucket]
        if 15 <= bucket < 60 and bucket % 2:
            yield run | {"le": f"{latency.upper_ns(bucket) / 1e9:.9g}"}, seen
    yield run | {"le": "+Inf"}, seen
    yield run | {"": "_sum"}, latency.sum_ns / 1e9
    yield run | {"": "_count"}, seen


def _lines(families: dict[str, tuple[str, str, list[Sample]]]) -> Iterator[str]:
    for metric, (kind, text, samples) in families.items():
        yield f"# HELP {metric} {text}\n# TYPE {metric} {kind}\n"
        for labels, value in samples:
            suffix = labels.get("", "_bucket" if "le" in labels else "")
            inner = ",".join(f"{name}={_quoted(str(one))}"
                             for name, one in labels.items() if name)
            yield f"{metric}{suffix}{{{inner}}} {value:.17g}\n"


def _quoted(text: str) -> str:
    """A label's value: three escapes there are, and no others (exposition format 0.0.4)."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'
