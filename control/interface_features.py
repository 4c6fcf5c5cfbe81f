"""What one interface can do, as its driver says: ethtool, rtnetlink and the netdev family."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from control.probe import Answer, Probe
from dataplane import hostnet
from dataplane import netlink as nl
from dataplane.attached import whose
from dataplane.netdev import (
    XDP_BASIC,
    XDP_HW,
    XDP_NDO_XMIT,
    XDP_REDIRECT,
    XDP_RX_SG,
    XDP_ZEROCOPY,
    xdp_features,
)

SIOCETHTOOL, ETHTOOL_GDRVINFO, ETHTOOL_GCHANNELS = 0x8946, 0x3, 0x3C
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_XDP = 31, 32, 43
IFLA_XDP_ATTACHED, IFLA_XDP_PROG_ID = 2, 4
IFF_LOWER_UP = 0x10000
# A page, less XDP's headroom (256), the skb's tail (320), Ethernet header, VLAN tag and checksum.
# veth and virtio_net reserve for the header only; smaller receive buffers allow less.
USUAL_MTU_LIMIT, MTU_LIMITS = 3498, {"veth": 3506, "virtio_net": 3506}
# Where the kernel cannot be asked (before 6.3): drivers with native XDP, and those with zero-copy.
NATIVE = frozenset({
    "bnxt_en", "cpsw", "dpaa2-eth", "ena", "enetc", "fec", "funeth", "gve", "hv_netvsc", "i40e",
    "ice", "igb", "igc", "ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mtk_soc_eth",
    "mvneta", "mvpp2", "netsec", "nfp", "octeontx2-nicpf", "qede", "sfc", "stmmac", "tsnep",
    "tun", "veth", "virtio_net", "vmxnet3"})
ZERO_COPY = frozenset({"i40e", "ice", "igc", "ixgbe", "mlx5_core", "stmmac", "nfp"})


@dataclass(frozen=True)
class Interface:
    """All that was asked once, for several probes.  `xdp_features` None: nobody to ask."""

    link: hostnet.Link
    driver: str
    channels: tuple[int, int, int] | None       # rx, tx, combined, now
    max_channels: tuple[int, int, int] | None
    queues: tuple[int, int]                     # rx, tx the device was made with
    xdp_features: int | None
    xdp_mode: int
    xdp_prog_id: int


def read_interface(iface: str) -> Interface:
    """Raises PortError for one that is not there."""
    with nl.Netlink() as net:
        try:
            link = hostnet.read_link(net, iface)
        except nl.NetlinkError as e:
            raise hostnet.missing(net, iface) from e
        head = struct.pack("=BxHiII", 0, 0, link.index, 0, 0)
        attrs = dict(nl.parse_attrs(net.request(nl.RTM_GETLINK, head)[0][16:]))
    xdp = dict(nl.parse_attrs(attrs.get(IFLA_XDP, b"")))
    now = _ethtool(link.name, ETHTOOL_GCHANNELS, 36)
    counts = struct.unpack("=8I", now[4:]) if now else None
    rx, tx = (struct.unpack("=I", attrs.get(kind, b"\1\0\0\0"))[0]
              for kind in (IFLA_NUM_RX_QUEUES, IFLA_NUM_TX_QUEUES))
    info = _ethtool(link.name, ETHTOOL_GDRVINFO, 196)
    return Interface(
        link, info[4:36].split(b"\0")[0].decode() if info else "",
        (counts[4], counts[5], counts[7]) if counts else None,
        (counts[0], counts[1], counts[3]) if counts else None, (rx, tx),
        xdp_features(link.index), xdp.get(IFLA_XDP_ATTACHED, b"\0")[0],
        struct.unpack("=I", xdp.get(IFLA_XDP_PROG_ID, bytes(4)))[0])


def _ethtool(name: str, command: int, size: int) -> bytes | None:
    data = ctypes.create_string_buffer(struct.pack("=I", command), size)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError as e:
            if e.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EPERM):
                return None
            raise
    return data.raw


def interface_probes(iface: str) -> list[Probe]:
    """Raises PortError for an interface that is not there."""
    it = read_interface(iface)
    name = it.link.name
    return [
        Probe("up", lambda: check_up(it), f"ip link set {name} up"),
        Probe("carrier", lambda: check_carrier(it), "plug the cable in, or set the other end up"),
        Probe("driver", lambda: check_driver(it), ""),
        Probe("native_xdp", lambda: check_native(it), "--mode skb"),
        Probe("zero_copy", lambda: check_zero_copy(it), "--copy-mode copy, or another card"),
        Probe("queues", lambda: check_queues(it), f"ethtool -L {name} combined 1"),
        Probe("mtu", lambda: check_mtu(it), f"ip link set {name} mtu {mtu_limit(it)}"
                                            ", or a program of section xdp.frags"),
        Probe("numa_node", lambda: check_numa(it), ""),
        Probe("xdp_free", lambda: check_attached(it), whose(name, it.xdp_prog_id)[1]),
    ]


def check_up(it: Interface) -> Answer:
    return it.link.up, "is up" if it.link.up else "is down"


def check_carrier(it: Interface) -> Answer:
    if not it.link.up:
        return None, "unknown while the interface is down"
    ok = bool(it.link.flags & IFF_LOWER_UP)
    return ok, "carrier" if ok else "no carrier"


def check_driver(it: Interface) -> Answer:
    return (True, it.driver) if it.driver else (None, "the driver does not say its name")


def check_native(it: Interface) -> Answer:
    if it.xdp_features is not None:
        if not it.xdp_features & XDP_BASIC:
            return False, f"{it.driver or 'the driver'} has no native XDP"
        words = {XDP_REDIRECT: "redirect", XDP_NDO_XMIT: "redirect target", XDP_HW: "offload",
                 XDP_RX_SG: "multi-buffer"}
        return True, ", ".join(["native XDP", *(text for bit, text in words.items()
                                                if it.xdp_features & bit)])
    if it.driver in NATIVE:
        return True, f"{it.driver} has it; this kernel cannot be asked for details"
    return None, "unknown, this kernel cannot be asked"


def check_zero_copy(it: Interface) -> Answer:
    if it.xdp_features is not None:
        ok = bool(it.xdp_features & XDP_ZEROCOPY)
        return ok, f"{it.driver or 'the driver'} {'offers' if ok else 'does not offer'} zero-copy"
    if it.driver in ZERO_COPY:
        return True, f"{it.driver} has it"
    return None, "unknown, this kernel cannot be asked"


def check_queues(it: Interface) -> Answer:
    if it.channels is None or it.max_channels is None:
        rx, tx = it.queues
        return rx > 0, f"{rx} receive, {tx} transmit"
    rx, tx, combined = it.channels
    if combined:
        return True, f"{combined} combined of {it.max_channels[2]}"
    return rx > 0, f"{rx} receive of {it.max_channels[0]}, {tx} transmit of {it.max_channels[1]}"


def mtu_limit(it: Interface) -> int:
    return MTU_LIMITS.get(it.driver, USUAL_MTU_LIMIT)


def check_mtu(it: Interface) -> Answer:
    """For one buffer a packet; with veth it is the other end's MTU that counts."""
    limit = mtu_limit(it)
    told = f"{it.link.mtu}, native XDP takes {limit} in one buffer"
    if it.driver not in MTU_LIMITS:
        told += " as a rule"
    return it.link.mtu <= limit, told


def check_numa(it: Interface) -> Answer:
    try:
        node = int(Path(f"/sys/class/net/{it.link.name}/device/numa_node").read_text())
    except (OSError, ValueError):
        return True, "none, not on a bus"
    return True, f"node {node}" if node >= 0 else "any, the bus names none"


def check_attached(it: Interface) -> Answer:
    modes = {1: "native", 2: "skb", 3: "hw", 4: "several modes"}
    if not it.xdp_mode:
        return True, "no XDP program attached"
    return False, f"a program is attached{whose(it.link.name, it.xdp_prog_id)[0]}, " \
        + modes.get(it.xdp_mode, "?")
