"""What packets go through while bench.io measures: veths, a TAP of the run's own, or memif.

The way in has a source at one end and the node, where the system runs, at the other; a redirect
leaves by a second way to the far end.  memif has sockets in a folder in the place of interfaces,
and one process of DPDK is both its source and whoever reads what comes out; the veths stay, for
the addresses that the stack behind the node has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.nets import End, VethPair, in_ns
from xdp_runtime.errors import ConfigError

MEMIF = "dpdk:net_memif"
PORTS = ("afxdp", "afpacket", "tap", MEMIF, "dpdk:net_af_xdp", "dpdk:net_af_packet")
SOURCES = ("auto", "live", "afpacket", "dpdk")
_OWN_IFINDEX = 1 << 20  # of a device that is no interface of the host, plus its place
_TAP = "xdputap0"
_LOOPS = ("net_null", "net_ring")  # devices that make their packets themselves


def port_named(word: str) -> str:
    """Raises ConfigError for what cannot be measured."""
    port = MEMIF if word == "dpdk" else word
    if port in PORTS:
        return port
    device = port.removeprefix("dpdk:").rstrip("0123456789")
    if port.startswith("dpdk:") and device in _LOOPS:
        raise ConfigError(f"--port {word}", "makes its packets itself, so that nothing is offered, "
                          "lost or late", f"python -m bench.dpdk {device.removeprefix('net_')}-tx "
                          "measures it beside dpdk-testpmd")
    raise ConfigError(f"--port {word}", "is no port for which there are wires here",
                      f"one of {', '.join(PORTS)}")


def source_for(port: str, wanted: str = "auto") -> str:
    """Raises ConfigError."""
    if port == MEMIF:
        if wanted not in ("auto", "dpdk"):
            raise ConfigError(f"--source {wanted}", "needs an interface, and memif has none: a "
                              "process of DPDK is at its other end", "--source dpdk")
        return "dpdk"
    return "live" if wanted == "auto" else wanted


def check(port: str, action: str, queues: int) -> None:
    """Raises ConfigError where the port cannot do that."""
    if port == "tap" and action not in ("drop", "tx"):
        raise ConfigError(f"--action {action}", "is not measured on a TAP of the run's own: there "
                          "is no second one, and no stack behind it", "--action drop,tx")
    if port == "dpdk:net_af_packet" and action == "pass":
        raise ConfigError(f"--port {port} --action pass", "would measure the kernel alone: it has "
                          "its own copy of every frame", f"--port dpdk:net_af_xdp, or {MEMIF}")
    if port != "afxdp" and queues > 1:
        raise ConfigError(f"--port {port} --queues {queues}", "is measured with one queue: where "
                          "it has several they are chosen by flow, and there is one flow",
                          "--queues 1")


@dataclass(frozen=True, slots=True)
class Wires:
    """`sockets` is memif's folder.  Where the port is a TAP, that is source and node, once it is
    there."""

    port: str
    source: End
    node: End
    out: End | None = None
    far: End | None = None
    sockets: Path | None = None

    @property
    def ifaces(self) -> list[End]:
        """The node's."""
        return [self.node] + ([self.out] if self.out is not None else [])

    def end_of_path(self, action: str) -> End | None:
        """The interface where packets come out."""
        if self.sockets is not None:
            return None
        return {"tx": self.source, "redirect": self.far}.get(action)

    def found(self, end: End) -> End:
        """With number and MAC of a TAP that is there now."""
        if end.ifname != _TAP:
            return end
        said = in_ns(end.ns, "cat", f"/sys/class/net/{_TAP}/ifindex",
                     f"/sys/class/net/{_TAP}/address").stdout.split()
        return replace(end, ifindex=int(said[0]), mac=said[1])

    def devices(self, role: str = "client") -> list[str]:
        """The node's, or the source's, as DPDK wants to be told of them."""
        if self.sockets is None:
            name = self.port.removeprefix("dpdk:")
            return [f"{name}{i},iface={end.ifname}" for i, end in enumerate(self.ifaces)]
        mac = f",mac={self.node.mac}" if role == "client" else ""
        return [f"net_memif{i},role={role},id={i},socket={self.sockets}/sock,socket-abstract=no"
                + (mac if i == 0 else "") for i in range(len(self.ifaces))]

    def numbers(self) -> list[int]:
        """Of the node's interfaces, for a redirect."""
        if self.sockets is None:
            return [end.ifindex for end in self.ifaces]
        return [_OWN_IFINDEX + i for i in range(len(self.ifaces))]

    def source_devices(self) -> Sequence[str]:
        """Of a source that uses DPDK."""
        if self.sockets is not None:
            return self.devices("server")
        return [f"net_af_packet0,iface={self.source.ifname},qdisc_bypass=1"]


@contextmanager
def wires(action: str, queues: int, port: str) -> Iterator[Wires]:
    with ExitStack() as stack:  # addresses are those of the source's frames
        way_in = stack.enter_context(VethPair(subnet=1, queues=queues))
        way_out = stack.enter_context(VethPair(None, way_in.b.ns, subnet=232, queues=queues)) \
            if action == "redirect" else None
        made = Wires(port, way_in.a, way_in.b)
        if way_out is not None:
            made = replace(made, out=way_out.b, far=way_out.a)
        if port == MEMIF:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xdpu-memif-"))
            made = replace(made, sockets=Path(folder))
        if port == "tap":
            tap = replace(way_in.b, ifname=_TAP)
            made = replace(made, source=tap, node=tap)
        yield made
