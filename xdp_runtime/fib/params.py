"""struct bpf_fib_lookup and the numbers around it (include/uapi/linux/bpf.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

SIZE_BYTES = 64
FAMILY, PROTOCOL, SPORT, DPORT, LENGTH, IFINDEX, TOS = 0, 1, 2, 4, 6, 8, 12
SOURCE, DESTINATION, VLAN, MARK, SMAC, DMAC = 16, 32, 48, 52, 52, 58
TABLE, METRIC, MTU = VLAN, TOS, LENGTH  # the same bytes under another name

EINVAL, ENODEV, EAFNOSUPPORT = 22, 19, 97
IP_MAX_MTU, IP6_MAX_MTU, IP6_MIN_MTU = 0xFFFF, 0xFFFF + 40, 1280


class Flag(IntFlag):
    """BPF_FIB_LOOKUP_*"""

    DIRECT = 1
    OUTPUT = 2
    SKIP_NEIGH = 4
    TBID = 8
    SRC = 16
    MARK = 32


KNOWN_FLAGS = 63


class Answer(IntEnum):
    """BPF_FIB_LKUP_RET_*"""

    SUCCESS = 0
    BLACKHOLE = 1
    UNREACHABLE = 2
    PROHIBIT = 3
    NOT_FORWARDED = 4
    FORWARDING_DISABLED = 5
    ENCAPSULATED = 6
    NO_NEIGHBOUR = 7
    FRAGMENTATION_NEEDED = 8
    NO_SOURCE = 9
