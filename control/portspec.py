"""The ports of a run, as the command line names them.

    --iface eth0,eth1                            of the kind that --port says
    --iface eth0,afpacket:eth1,eth2              and from a KIND: on of that kind
    --iface tap:NAME                             a new TAP
    --iface dpdk:net_memif0,role=client          a device of DPDK; the commas are its own
    --iface pcap:IN  pcap:IN,out=OUT  pcap:out=OUT   capture files: one to read, one to write, both
    --iface xsk:PATH,dev=IF[,entry=N]            an AF_XDP socket in a pinned XSKMAP, as a target
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdp_runtime.errors import ConfigError

if TYPE_CHECKING:
    from dataplane.xsk_port import SocketName

KINDS = ("afxdp", "afpacket", "tap", "dpdk", "pcap", "xsk")
OF_HOST = ("afxdp", "afpacket", "tap")  # interfaces of this network namespace


@dataclass(frozen=True, slots=True)
class PortSpec:
    """`name` is what the run calls it; `devargs` are of DPDK; `source` and `out` are files;
    `socket` is of another program."""

    kind: str
    name: str
    devargs: str = ""
    source: str = ""
    out: str = ""
    socket: SocketName | None = None

    @property
    def of_host(self) -> bool:
        return self.kind in OF_HOST


def parse(text: str, kind: str) -> list[PortSpec]:
    """What one --iface names; `kind` is that of names that do not say theirs.  Raises ConfigError.
    """
    if text.startswith("dpdk:"):
        return [_device(text.removeprefix("dpdk:"))]
    if text.startswith("pcap:"):
        return [_files(text)]
    if text.startswith("xsk:"):
        return [_socket(text)]
    out: list[PortSpec] = []
    for part in text.split(","):
        out.append(_interface(part.strip(), kind, text))
        kind = out[-1].kind
    return out


def parse_all(texts: Iterable[str], kind: str) -> dict[str, PortSpec]:
    """By name, in order.  Raises ConfigError."""
    found: dict[str, PortSpec] = {}
    for text in texts:
        for spec in parse(text, kind):
            if spec.name in found:
                raise ConfigError(f"--iface {text}", f"names {spec.name} twice")
            found[spec.name] = spec
    return found


def _interface(part: str, kind: str, text: str) -> PortSpec:
    prefix, colon, name = part.partition(":")
    if not colon:
        prefix, name = kind, part
    if not name:
        raise ConfigError(f"--iface {text!r}", "has an empty name")
    if prefix not in OF_HOST:
        why = "stands alone in its --iface" if prefix in KINDS else "is no kind of port"
        raise ConfigError(f"--iface {text}", f"{prefix} {why}", f"one of: {', '.join(KINDS)}; "
                          "--iface may be given several times")
    return PortSpec(prefix, name)


def _device(devargs: str) -> PortSpec:
    from dpdk.port import device_name
    return PortSpec("dpdk", device_name(devargs), devargs)


def _files(text: str) -> PortSpec:
    source, out = "", ""
    for number, part in enumerate(text.removeprefix("pcap:").split(",")):
        key, equals, value = part.partition("=")
        if key == "out" and equals and value and not out:
            out = value
        elif number == 0 and part and not (key == "out" and equals):
            source = part
        else:
            raise ConfigError(f"--iface {text}", f"{part!r} is no part of it",
                              "pcap:IN, pcap:IN,out=OUT or pcap:out=OUT")
    if out == "-":
        raise ConfigError(f"--iface {text}", "standard output has the status lines",
                          "write to a file, or use --pcap IN --out -")
    return PortSpec("pcap", source or out, source=source, out=out)


def _socket(text: str) -> PortSpec:
    from dataplane.xsk_port import SocketName

    path, *more = text.removeprefix("xsk:").split(",")
    fields = dict(part.split("=", 1) for part in more if "=" in part)
    entry = fields.get("entry", "0")
    known = len(fields) == len(more) and {"dev"} <= set(fields) <= {"dev", "entry"}
    if not path or not known or not fields["dev"] or not entry.isdecimal():
        raise ConfigError(f"--iface {text}", "is no socket",
                          "xsk:PATH,dev=IF[,entry=N]: the pinned XSKMAP, the interface that the "
                          "socket is bound to, its entry")
    where = SocketName(path, fields["dev"], int(entry))
    return PortSpec("xsk", where.name, socket=where)


def devices(text: str) -> dict[str, PortSpec]:
    """--port dpdk:DEVICE[;DEVICE...]"""
    found: dict[str, PortSpec] = {}
    for devargs in text.removeprefix("dpdk:").split(";"):
        spec = _device(devargs)
        if spec.name in found:
            raise ConfigError(f"--port {text}", f"names {spec.name} twice")
        found[spec.name] = spec
    return found
