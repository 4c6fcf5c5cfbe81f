"""KernelEvent: where bpf_perf_event_output() goes in the kernel, by perf_event_open(2)."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

_SYS_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PAGE, _DATA_PAGES = mmap.PAGESIZE, 8
_HEAD_AT, _TAIL_AT = 1024, 1032  # struct perf_event_mmap_page
_RECORD_SAMPLE = 9


class KernelEvent:
    """A perf event of a CPU whose records are what programs put out there."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        attr = bytearray(112)
        struct.pack_into("=IIQQQQ", attr, 0, 1, 112, 10, 1, 1 << 10, 0)  # software, BPF_OUTPUT, RAW
        raw = (ctypes.c_char * 112).from_buffer(attr)
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(_SYS_PERF_EVENT_OPEN[os.uname().machine], raw, -1, cpu, -1, 8)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
        self.pages = mmap.mmap(self.fd, (1 + _DATA_PAGES) * _PAGE)
        libc.ioctl(self.fd, 0x2400, 0)  # PERF_EVENT_IOC_ENABLE

    def records(self) -> list[bytes]:
        """Their raw bytes, which the kernel pads."""
        head, tail = (struct.unpack_from("=Q", self.pages, at)[0] for at in (_HEAD_AT, _TAIL_AT))
        data, out = self.pages[_PAGE:] * 2, []
        while tail < head:
            at = tail % (_DATA_PAGES * _PAGE)
            kind, _, size = struct.unpack_from("=IHH", data, at)
            if kind == _RECORD_SAMPLE:
                raw = struct.unpack_from("=I", data, at + 8)[0]
                out.append(data[at + 12:at + 12 + raw])
            tail += size
        struct.pack_into("=Q", self.pages, _TAIL_AT, tail)
        return out

    def close(self) -> None:
        self.pages.close()
        os.close(self.fd)
