"""What a driver says of its XDP, by the netdev family of generic netlink (Linux 6.3)."""

from __future__ import annotations

import struct

from dataplane import netlink as nl

CTRL_ID, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, NETDEV_A_DEV_XDP_FEATURES = 1, 1, 3
NETDEV_A_DEV_XSK_FEATURES = 6
XSK_TX_TIMESTAMP, XSK_TX_CHECKSUM = 1, 2
XDP_BASIC, XDP_REDIRECT, XDP_NDO_XMIT, XDP_ZEROCOPY, XDP_HW, XDP_RX_SG = 1, 2, 4, 8, 16, 32


def xdp_features(ifindex: int) -> int | None:
    """The XDP_* bits of an interface of this network namespace; None where nobody can say."""
    return _ask(ifindex, NETDEV_A_DEV_XDP_FEATURES)


def xsk_features(ifindex: int) -> int | None:
    """The XSK_* bits of TX metadata that its driver knows (Linux 6.8); None as above."""
    return _ask(ifindex, NETDEV_A_DEV_XSK_FEATURES)


def _ask(ifindex: int, attribute: int) -> int | None:
    name = nl.attr(CTRL_ATTR_FAMILY_NAME, b"netdev\0")
    try:
        with nl.Netlink(nl.NETLINK_GENERIC) as net:
            family = dict(nl.parse_attrs(net.request(
                CTRL_ID, struct.pack("=BBH", CTRL_CMD_GETFAMILY, 1, 0) + name)[0][4:]))
            number = struct.unpack("=H", family[CTRL_ATTR_FAMILY_ID])[0]
            device = dict(nl.parse_attrs(net.request(
                number, struct.pack("=BBH", NETDEV_CMD_DEV_GET, 1, 0)
                + nl.attr(NETDEV_A_DEV_IFINDEX, ifindex))[0][4:]))
    except (OSError, KeyError, IndexError):
        return None
    value = device.get(attribute)
    return None if value is None else int(struct.unpack("=Q", value)[0])
