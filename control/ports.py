"""The ports of a run: what kind and how many there will be, and opening them."""

from __future__ import annotations

import socket
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from control import afxdp_options, features
from dataplane import hostwrite
from dataplane import netlink as nl
from dataplane.hostnet import IFF_UP
from dataplane.injector import FRAME_MAX
from dataplane.live_frames import longest
from dataplane.live_port import LIVE
from dataplane.port import Port, PortKind
from dataplane.takeover import Takeover
from dataplane.tap import TAP, TapPort
from dataplane.tap_device import open_tap
from xdp_runtime.errors import ConfigError, PortError

if TYPE_CHECKING:
    from afxdp.granted import StandIn

_NEEDS = {"afxdp": ("net_admin", "net_raw", "cap_bpf"), "afpacket": ("net_admin", "net_raw"),
          "tap": ("net_admin",), "dpdk": ()}
_TAP_FRAME_BYTES = 16384  # whoever raises its MTU may do so up to 15,700
_REBIND_S = 2.0  # the kernel gives a dead process's queues back a moment after its death


def foresee(args: Namespace) -> tuple[PortKind, int]:
    """The kind of ports and the number of workers there will be.  Raises what is refused."""
    if args.port == "dpdk":
        from dpdk import bursts
        kind, counts = bursts.kind(args.frags), [_count(args.queue, 1) for _ in args.iface]
    elif args.port == "tap":
        kind, counts = TAP, [_count(args.queue, 1) for _ in args.iface]
    else:
        from afxdp import interface
        found = [interface.query(name) for name in args.iface]
        if args.port == "afxdp":
            from afxdp import native
            from afxdp.port import kind_of
            native.load()
            kind = kind_of(args.frags, afxdp_options.way_out(args), afxdp_options.asks(args))
            counts = [_count(args.queue, one.channels) for one in found]
            afxdp_options.share(args, counts)
        else:
            from dataplane.af_packet import AfPacketPort
            kind, counts = AfPacketPort.kind, [_count(args.queue, 1) for _ in found]
    needs = [*_NEEDS[args.port], *(() if is_stackless(args) else ("tap",))]
    if args.port == "afxdp" and args.setup is not None:
        needs = []  # the set-up process has them
    for name in dict.fromkeys(needs):
        result = features.find(name).run()
        if result.ok is False:
            raise PortError(f"xdpu run --port {args.port}", result.reason, result.hint)
    return kind, min(counts)


def _count(queues: str | tuple[int, ...], channels: int) -> int:
    return max(channels, 1) if isinstance(queues, str) else len(queues)


def is_stackless(args: Namespace) -> bool:
    if args.port == "dpdk" and not args.no_stack:
        from dpdk.port import KERNEL_SEES
        return any(text.startswith(KERNEL_SEES) for text in args.devices.values())
    return bool(args.no_stack or args.port == "tap")


def foresee_stack(args: Namespace) -> PortKind:
    """The likely kind of port behind which the stack will be."""
    may = args.stack != "tap" and args.port == "afxdp" and not args.setup_socket
    return LIVE if may and args.mode not in ("generic", "skb") else TAP


def choose_stack(args: Namespace, port: Port) -> tuple[str, str]:
    """The way of XDP_PASS, "live" or "tap", and why it is not live frames where that would be
    better.  Raises PortError when --stack live cannot be."""
    if args.stack == "tap":
        return "tap", ""
    why = ""
    if args.port != "afxdp":
        why = f"live frames need XDP on the interface, which --port {args.port} does without"
    elif args.setup is not None:
        why = "live frames need privileges, which the set-up process keeps to itself"
    elif getattr(port, "xdp_mode", "native") != "native":
        why = "live frames would run through generic XDP again"
    elif longest(port.mtu) > FRAME_MAX:
        why = f"live frames take {FRAME_MAX} bytes, the MTU is {port.mtu}"
    if why and args.stack == "live":
        raise PortError(f"--stack live on {port.name}", why, "--stack tap")
    return ("tap", why) if why else ("live", "")


def open_port(args: Namespace, name: str, mended: bool) -> Port:
    if args.port == "tap":
        return _open_tap(args, name)
    if args.port == "dpdk":
        from dpdk.port import DpdkPort, pci_addresses
        return DpdkPort.open(args.devices[name], _count(args.queue, 1), dpdk_args=args.dpdk_args,
                             pci=pci_addresses(list(args.devices.values())),
                             promisc=args.promisc, frags=args.frags)
    if args.port == "afpacket":
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
    tap = TapPort(open_tap(name, queues, True, nonblocking=True, mac=getattr(port, "mac", None)),
                  TapPort.frame_size_for(port.mtu))
    try:
        with nl.Netlink() as net:
            hostwrite.set_link(net, tap.ifindex, flags=IFF_UP, mask=IFF_UP)
    except BaseException:
        tap.close()
        raise
    return tap


def open_stand_in(args: Namespace, port: Port, name: str, queues: int) -> TapPort:
    """A TAP that will have the port's addresses; the set-up process makes it where there is one."""
    frame_size = TapPort.frame_size_for(port.mtu)
    if args.port == "afxdp" and args.setup is not None:
        made: TapPort = args.setup.open_tap(port.name, name, queues, frame_size)
        return made
    return TapPort.open(name, queues, frame_size=frame_size)


def take_over(args: Namespace, name: str, tap: str, run_dir: Path) -> Takeover | StandIn:
    """How the TAP comes to stand in for the interface: apply() it, and restore()."""
    if args.port == "afxdp" and args.setup is not None:
        from afxdp.granted import StandIn as Granted
        return Granted(args.setup, name)
    return Takeover(name, tap, run_dir)


def tap_name(iface: str, position: int, all_names: Sequence[str]) -> str:
    """xdpu-eth0, cut to what a name may have; numbered where that makes two alike."""
    cut = [f"xdpu-{name}"[:15] for name in all_names]
    name = cut[position]
    return name if cut.count(name) == 1 else f"{name[:13]}.{position}"
