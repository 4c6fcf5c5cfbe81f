"""IngressDrop: while it is open, the host's stack receives nothing from an interface.

A program of two instructions at tc ingress says TC_ACT_SHOT.  Sockets of type AF_PACKET sit before
it and still see every packet.  As a tcx link it is gone when the process is, however it ends;
kernels before 6.6 have no tcx and get a cls_bpf filter, which only `close` removes.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress

from dataplane.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, attr
from xdp_runtime.bpf_syscall import AS_ROOT, AttachType, ProgType, link_create, prog_load
from xdp_runtime.errors import LoadError, PortError
from xdp_runtime.isa import Exit, Imm, Mov, encode

_TC_ACT_SHOT = 2  # TCX_DROP too
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER = 36, 37, 44, 45
_RTM_GETTFILTER = 46
_CLSACT_PARENT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _ACT_DIRECT = 6, 7, 8, 1
_HANDLE = 0x78647075  # "xdpu"
_FIRST = 1 << 16 | 0x0300  # priority 1, ETH_P_ALL in network order
_NO_TCX = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class IngressDrop:
    """In the calling thread's network namespace.  `mode` is "tcx" or "cls_bpf"."""

    def __init__(self, ifname: str, ifindex: int, tcx: bool = True) -> None:
        self._ifindex, self._link = ifindex, -1
        self._netlink: Netlink | None = None
        self._made_qdisc = False
        self.mode = ""
        program = -1
        try:
            program = prog_load(encode((Mov(True, 0, Imm(_TC_ACT_SHOT)), Exit())),
                                ProgType.SCHED_CLS, name="xdpu_take")
            if not (tcx and self._attach_tcx(program)):
                self._attach_filter(program)
        except (OSError, LoadError) as error:
            self.close()
            refusal = error if isinstance(error, OSError) else error.__cause__
            why = refusal.strerror if isinstance(refusal, OSError) else str(error)
            if isinstance(refusal, OSError) and refusal.errno in (errno.EPERM, errno.EACCES):
                why = "not permitted"
            raise PortError(f"interface {ifname}", "the packets taken from it cannot be kept from "
                            f"the host: {why}", AS_ROOT) from error
        finally:
            if program >= 0:
                os.close(program)

    def _attach_tcx(self, program: int) -> bool:
        try:
            self._link = link_create(program, self._ifindex, AttachType.TCX_INGRESS)
        except OSError as error:
            if error.errno in _NO_TCX:
                return False
            raise
        self.mode = "tcx"
        return True

    def _attach_filter(self, program: int) -> None:
        self._netlink = Netlink()
        try:
            self._tc(_RTM_NEWQDISC, _CLSACT_HANDLE, _CLSACT_PARENT, 0, "clsact",
                     flags=NLM_F_CREATE | NLM_F_EXCL)
            self._made_qdisc = True
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        options = (attr(_TCA_BPF_FD, program) + attr(_TCA_BPF_NAME, b"xdpu\0")
                   + attr(_TCA_BPF_FLAGS, _ACT_DIRECT))
        self._tc(_RTM_NEWTFILTER, _HANDLE, _INGRESS, _FIRST, "bpf", options, NLM_F_CREATE)
        self.mode = "cls_bpf"

    def _tc(self, command: int, handle: int, parent: int, info: int, kind: str,
            options: bytes = b"", flags: int = 0) -> None:
        payload = struct.pack("=BxHiIII", 0, 0, self._ifindex, handle, parent, info)
        payload += attr(_TCA_KIND, kind.encode() + b"\0")
        if options:
            payload += attr(_TCA_OPTIONS, options)
        if self._netlink is not None:
            self._netlink.request(command, payload, flags)

    def close(self) -> None:
        """The host receives again.  May be called twice."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
        if self._netlink is not None:
            with suppress(OSError):  # the interface may be gone, and the filter with it
                if self.mode:
                    self._tc(_RTM_DELTFILTER, _HANDLE, _INGRESS, _FIRST, "bpf")
            with suppress(OSError):
                if self._made_qdisc and not self._others():
                    self._tc(_RTM_DELQDISC, _CLSACT_HANDLE, _CLSACT_PARENT, 0, "clsact")
            self._netlink.close()
            self._netlink = None

    def _others(self) -> bool:
        """Somebody else has put filters on the clsact qdisc that we made."""
        netlink = self._netlink
        return netlink is not None and any(
            netlink.dump(_RTM_GETTFILTER,
                         struct.pack("=BxHiIII", 0, 0, self._ifindex, 0, parent, 0))
            for parent in (_INGRESS, _EGRESS))
