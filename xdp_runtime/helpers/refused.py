"""Helpers that the kernel allows in XDP programs and that cannot exist in user space: why.

Programs that call one are verified, and refused when they are loaded to run here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from xdp_runtime.refused_functions import CGROUP, KERNEL_MEMORY, TASK, USER_MEMORY

_SOCKET = "the socket is an object of the kernel, which no process can hold"
_KPTR = "what is exchanged is a pointer to an object of the kernel"
_COUNTERS = "the counters are the kernel's, of the CPU it runs on"

_REASONS = {
    TASK: (14, 15, 16, 35, 109, 117, 120, 141, 156, 157, 158, 175, 180),
    _SOCKET: (84, 85, 86, 99, 100, 110, 136, 137, 138, 139, 140, 178, 196),
    CGROUP: (17, 37, 80, 123, 210, 211),
    KERNEL_MEMORY: (113, 115, 149, 153, 154),
    USER_MEMORY: (112, 114),
    _KPTR: (194,),
    _COUNTERS: (22, 55, 176),
}

REFUSED: Mapping[int, str] = MappingProxyType(
    {number: reason for reason, numbers in _REASONS.items() for number in numbers})
