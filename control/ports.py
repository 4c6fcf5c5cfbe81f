"""The ports of a run: of what kinds they will be and how many, and opening them."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from control import afxdp_options, features
from control.portspec import PortSpec
from dataplane import hostwrite
from dataplane import netlink as nl
from dataplane.hostnet import IFF_UP
from dataplane.injector import FRAME_MAX
from dataplane.live_frames import longest
from dataplane.live_port import LIVE
from dataplane.port import Port, PortKind
from dataplane.skb_injector import INJECTORS
from dataplane.takeover import Takeover
from dataplane.tap import TAP, TapPort
from xdp_runtime.errors import ConfigError, PortError
from xdp_runtime.state import max_workers

if TYPE_CHECKING:
    from afxdp.granted import StandIn

_NEEDS = {"afxdp": ("net_admin", "net_raw", "cap_bpf"), "afpacket": ("net_admin", "net_raw"),
          "tap": ("net_admin",), "dpdk": (), "pcap": (), "xsk": ("net_admin", "cap_bpf")}
FILE_IFINDEX = 1 << 21  # plus the port's place: interface index of a capture file
_TAP_FRAME_BYTES = 16384  # whoever raises its MTU may do so up to 15,700
_REBIND_S = 2.0  # the kernel gives a dead process's queues back a moment after its death


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The kinds of ports, those behind which the stack will be, and how many workers there are."""

    kinds: tuple[PortKind, ...]
    stacks: tuple[PortKind, ...]
    workers: int


def foresee(args: Namespace) -> Foreseen:
    """Raises what can be refused before anything is touched."""
    specs = list(args.ports.values())
    counts = [_queues(args, spec) for spec in specs]
    workers = min(*counts, max_workers())
    afxdp_options.share(args, [count for spec, count in zip(specs, counts, strict=True)
                               if spec.kind == "afxdp"], workers)
    kinds = tuple(dict.fromkeys(_kind(args, spec) for spec in specs))
    stacks = tuple(dict.fromkeys(_foresee_stack(args, spec) for spec in specs
                                 if has_stack(args, spec)))
    for spec in specs:
        needs = [*_NEEDS[spec.kind], *(("tap",) if has_stack(args, spec) else ())]
        if spec.kind == "afxdp" and args.setup is not None:
            needs = []  # the set-up process has them
        for name in needs:
            result = features.find(name).run()
            if result.ok is False:
                mend = f"{result.hint}; or let xdpu setup do it" if spec.kind == "afxdp" \
                    else result.hint
                raise PortError(f"xdpu run --port {spec.kind}", result.reason, mend)
    return Foreseen(kinds, stacks, workers)


def _queues(args: Namespace, spec: PortSpec) -> int:
    if spec.kind in ("pcap", "xsk"):
        return 1
    if spec.kind in ("afxdp", "afpacket"):
        from afxdp import interface
        channels = interface.query(spec.name).channels
        return _count(args.queue, channels if spec.kind == "afxdp" else 1)
    return _count(args.queue, 1)


def _kind(args: Namespace, spec: PortSpec) -> PortKind:
    match spec.kind:
        case "afxdp":
            from afxdp import native
            from afxdp.port import kind_of
            native.load()
            return kind_of(args.frags, afxdp_options.way_out(args), afxdp_options.asks(args),
                           args.checksums)
        case "afpacket":
            from dataplane.af_packet import AfPacketPort
            return AfPacketPort.kind
        case "dpdk":
            from dpdk.kind import kind
            return kind(args.frags)
        case "pcap":
            from dataplane import pcap
            return pcap.kind_of(spec.source)
        case "xsk":
            return LIVE
    return TAP


def _count(queues: str | tuple[int, ...], channels: int) -> int:
    return max(channels, 1) if isinstance(queues, str) else len(queues)


def has_stack(args: Namespace, spec: PortSpec) -> bool:
    """Does XDP_PASS of this port go anywhere?"""
    return not args.no_stack and spec.kind not in ("tap", "pcap", "xsk") and not kernel_sees(spec)


def kernel_sees(spec: PortSpec) -> bool:
    """The kernel keeps a copy of each frame of this device."""
    if spec.kind != "dpdk":
        return False
    from dpdk.port import KERNEL_SEES
    return spec.devargs.startswith(KERNEL_SEES)


def _foresee_stack(args: Namespace, spec: PortSpec) -> PortKind:
    """The likely kind of port behind which the stack will be."""
    may = args.stack != "tap" and spec.kind == "afxdp" and not args.setup_socket
    return LIVE if may and args.mode not in ("generic", "skb") else TAP


def choose_stack(args: Namespace, spec: PortSpec, port: Port) -> tuple[str, str]:
    """The way of XDP_PASS, a key of INJECTORS or "tap", and why it is not the interface itself
    where that would be better.  Raises PortError where what --stack says cannot be."""
    if args.stack == "tap":
        return "tap", ""
    way, why = args.stack if args.stack != "auto" else "skb", ""
    what = INJECTORS[way].what
    if spec.kind != "afxdp":
        why = f"{what} need XDP on the interface, which --port {spec.kind} does without"
    elif args.setup is not None:
        why = f"{what} need privileges, which the set-up process keeps to itself"
    elif getattr(port, "xdp_mode", "native") != "native":
        why = f"{what} would run through generic XDP again"
    elif longest(port.mtu) > FRAME_MAX:
        why = f"{what} take {FRAME_MAX} bytes, the MTU is {port.mtu}"
    if why and args.stack == way:
        raise PortError(f"--stack {way} on {port.name}", why, "--stack tap")
    return ("tap", why) if why else (way, "")


def open_port(args: Namespace, spec: PortSpec, mended: bool) -> Port:
    name = spec.name
    if spec.kind == "tap":
        return _open_tap(args, name)
    if spec.kind == "pcap":
        from dataplane.pcap import PcapPort
        return PcapPort(spec.source or None, spec.out or None,
                        ifindex=FILE_IFINDEX + list(args.ports).index(name))
    if spec.socket is not None:
        from dataplane.xsk_port import XskPort
        sockets = [one.name for one in args.ports.values() if one.kind == "xsk"]
        return XskPort(spec.socket, 1 + sockets.index(name))
    if spec.kind == "dpdk":
        from dpdk.port import DpdkPort, pci_addresses
        devices = [one.devargs for one in args.ports.values() if one.kind == "dpdk"]
        return DpdkPort.open(spec.devargs, _count(args.queue, 1), dpdk_args=args.dpdk_args,
                             pci=pci_addresses(devices), promisc=args.promisc, frags=args.frags)
    if spec.kind == "afpacket":
        from dataplane.af_packet import AfPacketPort
        return AfPacketPort(name, _count(args.queue, 1), promiscuous=args.promisc)
    deadline_s = time.monotonic() + (_REBIND_S if mended else 0)
    while True:
        try:
            return afxdp_options.open_port(args, name)
        except PortError as error:
            busy = "already bound" in error.why or "another XDP program" in error.why
            if not busy or time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


def _open_tap(args: Namespace, name: str) -> TapPort:
    if name in (known for _, known in socket.if_nameindex()):
        raise ConfigError(f"tap {name}", "an interface of that name exists",
                          "--port tap makes a new one: choose another name")
    port = TapPort.open(name, _count(args.queue, 1), frame_size=_TAP_FRAME_BYTES)
    try:
        with nl.Netlink() as net:
            hostwrite.set_link(net, port.ifindex, flags=IFF_UP, mask=IFF_UP)
    except BaseException:
        port.close()
        raise
    return port


def open_own_tap(port: Port, name: str, queues: int) -> TapPort:
    """A TAP beside a port that is no interface: it has the port's MAC, is up, and no address."""
    tap = TapPort.open(name, queues, mac=getattr(port, "mac", None), offloads=True,
                       frame_size=TapPort.frame_size_for(port.mtu))
    try:
        with nl.Netlink() as net:
            hostwrite.set_link(net, tap.ifindex, flags=IFF_UP, mask=IFF_UP)
    except BaseException:
        tap.close()
        raise
    return tap


def open_stand_in(args: Namespace, spec: PortSpec, port: Port, name: str, queues: int) -> TapPort:
    """A TAP that will have the port's addresses; the set-up process makes it where there is one."""
    frame_size = TapPort.frame_size_for(port.mtu)
    if spec.kind == "afxdp" and args.setup is not None:
        made: TapPort = args.setup.open_tap(port.name, name, queues, frame_size)
        return made
    return TapPort.open(name, queues, frame_size=frame_size, offloads=True)


def take_over(args: Namespace, spec: PortSpec, tap: str, run_dir: Path) -> Takeover | StandIn:
    """How the TAP comes to stand in for the interface: apply() it, and restore()."""
    if spec.kind == "afxdp" and args.setup is not None:
        from afxdp.granted import StandIn as Granted
        return Granted(args.setup, spec.name)
    return Takeover(spec.name, tap, run_dir)


def tap_name(iface: str, position: int, all_names: Sequence[str]) -> str:
    """xdpu-eth0, cut to what a name may have; numbered where that makes two alike."""
    cut = [f"xdpu-{name}"[:15] for name in all_names]
    name = cut[position]
    return name if cut.count(name) == 1 else f"{name[:13]}.{position}"
