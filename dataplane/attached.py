"""Which XDP program is on an interface, whose it is, and what takes it off."""

from __future__ import annotations

import struct
import sys

from dataplane import netlink as nl
from xdp_runtime.bpf_syscall import Cmd, info_by_id, link_ids

_NAME_AT, _NAME_BYTES = 64, 16  # in struct bpf_prog_info
_LINK = struct.Struct("=4I I")  # of struct bpf_link_info: type, id, prog_id, padding; xdp.ifindex
_LINK_XDP = 6  # BPF_LINK_TYPE_XDP
_DISPATCHER = "xdp_dispatcher"  # libxdp's, which runs several programs in turn


_IFLA_XDP, _IFLA_XDP_PROG_ID = 43, 4


def attached(ifindex: int) -> int:
    """The id of the XDP program on an interface of this network namespace, 0 if there is none.
    Raises OSError."""
    with nl.Netlink() as net:
        body = net.request(nl.RTM_GETLINK, struct.pack("=BxHiII", 0, 0, ifindex, 0, 0))[0]
    xdp = dict(nl.parse_attrs(dict(nl.parse_attrs(body[16:])).get(_IFLA_XDP, b"")))
    return int.from_bytes(xdp.get(_IFLA_XDP_PROG_ID, b""), sys.byteorder)


def whose(ifname: str, program: int) -> tuple[str, str]:
    """What is said of the program with this id, "" for 0, and how to take it off the interface."""
    name, link = _name(program), _link(program)
    words = " ".join(filter(None, (name, f"id {program}" if program else "",
                                   f"held by link {link}" if link else "")))
    if name == _DISPATCHER:
        mend = f"xdp-loader unload {ifname} --all"
    elif link:
        mend = f"end the process that holds it, see: bpftool link show id {link}"
    else:
        mend = f"ip link set dev {ifname} xdp off"
    return f" ({words})" if words else "", mend


def _name(program: int) -> str:
    try:
        info = info_by_id(Cmd.PROG_GET_FD_BY_ID, program, _NAME_AT + _NAME_BYTES)
    except OSError:  # it ended meanwhile, or one may not look
        return ""
    return info[_NAME_AT:].split(b"\0")[0].decode("ascii", "replace")


def _link(program: int) -> int:
    """Id of the link that keeps it on an interface; 0 where it was attached by netlink."""
    try:
        for number in link_ids():
            try:
                info = info_by_id(Cmd.LINK_GET_FD_BY_ID, number, _LINK.size)
            except FileNotFoundError:  # somebody else's, which ended meanwhile
                continue
            kind, _, prog_id, _, _ = _LINK.unpack(info)
            if kind == _LINK_XDP and prog_id == program:
                return number
    except OSError:  # one may not look
        return 0
    return 0
