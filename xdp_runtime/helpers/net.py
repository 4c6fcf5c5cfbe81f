"""What the kernel's network stack answers: routes, limits, sockets, SYN cookies."""

from __future__ import annotations

from xdp_runtime.helpers.proto import Arg, Helper, Ret

_TUPLE = (Arg.CTX, Arg.MEM, Arg.SIZE, Arg.ANYTHING, Arg.ANYTHING)
_HEADERS = (Arg.SOCKET, Arg.MEM, Arg.SIZE, Arg.MEM, Arg.SIZE)

HELPERS = (
    Helper(84, "sk_lookup_tcp", _TUPLE, Ret.SOCKET_OR_NULL, packet=True),
    Helper(85, "sk_lookup_udp", _TUPLE, Ret.SOCKET_OR_NULL, packet=True),
    Helper(86, "sk_release", (Arg.SOCKET_RELEASE,), Ret.SCALAR),
    Helper(99, "skc_lookup_tcp", _TUPLE, Ret.SOCKET_OR_NULL, packet=True),
    Helper(100, "tcp_check_syncookie", _HEADERS, Ret.SCALAR, packet=True,
           gpl_only=True),
    Helper(110, "tcp_gen_syncookie", _HEADERS, Ret.SCALAR, packet=True,
           gpl_only=True),
    Helper(136, "skc_to_tcp6_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(137, "skc_to_tcp_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(138, "skc_to_tcp_timewait_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(139, "skc_to_tcp_request_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(140, "skc_to_udp6_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(178, "skc_to_unix_sock", (Arg.SOCKET,), Ret.OBJECT),
    Helper(196, "skc_to_mptcp_sock", (Arg.SOCKET,), Ret.OBJECT),
)
