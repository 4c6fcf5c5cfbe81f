"""Behind the stack: a program that reads datagrams, TCP through the path (iperf3), and its round
trips."""

from __future__ import annotations

import json
import shutil
import signal
from types import TracebackType
from typing import Self

from bench.histogram import USED, Arrived
from bench.source import built
from tests.nets import End, in_ns, popen_in_ns

PORT = 9  # of the source's datagrams
_RR_PORT = 10


class Reader:
    """native/udp_sink at the end of the path, as a Sink; its `packets` are those a program got."""

    def __init__(self, end: End, cpu: int) -> None:
        binary = built("udp_sink")
        self._end = end
        self._process = popen_in_ns(end.ns, "taskset", "-c", str(cpu), binary,
                                    str(PORT))

    def __enter__(self) -> Self:
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        if "ready" not in line:
            raise RuntimeError(line.strip() or "the reader of datagrams ended")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def packets(self) -> int:
        lines = in_ns(self._end.ns, "cat", "/proc/net/snmp").stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("InDatagrams")])

    def read(self) -> Arrived:
        self._process.send_signal(signal.SIGUSR1)
        assert self._process.stdout is not None
        return _arrived(self._process.stdout.readline())


def _arrived(line: str) -> Arrived:
    said = json.loads(line)
    counts = [0] * USED
    for bucket, count in said["histogram"].items():
        counts[int(bucket)] = count
    return Arrived(said["packets"], tuple(counts))


def tcp_round_trips(client: End, server: End, seconds: float, cpus: tuple[int, int]) -> Arrived:
    """Of one byte there and back, the next when the last has come (native/tcp_rr)."""
    binary = built("tcp_rr")
    listener = popen_in_ns(server.ns, "taskset", "-c", str(cpus[1]), binary, str(_RR_PORT))
    try:
        assert listener.stderr is not None
        if "ready" not in (line := listener.stderr.readline()):
            raise RuntimeError(line.strip() or "tcp_rr does not listen")
        return _arrived(in_ns(client.ns, "taskset", "-c", str(cpus[0]), binary, str(_RR_PORT),
                              server.ip4, str(seconds), timeout_s=seconds + 30).stdout)
    finally:
        listener.kill()
        listener.communicate()


def tcp_mbps(client: End, server: End, seconds: float, cpus: tuple[int, int]) -> float:
    """Goodput of one connection.  Raises RuntimeError where there is no iperf3."""
    if not shutil.which("iperf3"):
        raise RuntimeError("no iperf3 (apt install iperf3)")
    listener = popen_in_ns(server.ns, "taskset", "-c", str(cpus[1]), "iperf3", "-s", "-1",
                           "--forceflush")
    try:
        assert listener.stdout is not None
        while "listening" not in (line := listener.stdout.readline()):
            if not line:
                raise RuntimeError("iperf3 does not listen")
        done = in_ns(client.ns, "taskset", "-c", str(cpus[0]), "iperf3", "-c", server.ip4, "-t",
                     str(max(1, round(seconds))), "-J", check=False, timeout_s=seconds + 30)
        said = json.loads(done.stdout)
        if "error" in said:
            raise RuntimeError(f"iperf3: {said['error']}")
        return float(said["end"]["sum_received"]["bits_per_second"]) / 1e6
    finally:
        listener.kill()
        listener.communicate()
