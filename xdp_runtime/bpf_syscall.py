"""bpf(2) by ctypes: one function a command, numbers and bytes in, numbers and bytes out.

`union bpf_attr` is packed by hand, in the order of include/uapi/linux/bpf.h; the kernel takes a
shorter attr than its own and assumes zeros.  What fails raises OSError with the kernel's errno,
except a program that does not load (VerifyError with the verifier's log, or LoadError) and an
attachment that is refused (PortError): these need more said.  Objects live as long as their file
descriptor, which the caller closes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache

from xdp_runtime.errors import LoadError, PortError, VerifyError

_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
BPF_NUMBER = _NR_BPF.get(platform.machine(), 0)  # of the system call, 0 where it is not known
_LOG_SIZE_BYTES = 16 << 20
_MAPS_MAX = 64  # MAX_USED_MAPS
_OBJ_NAME_CHARS = 15  # BPF_OBJ_NAME_LEN, less the terminator
_NOT_A_REASON = ("processed ", "verification time", "stack depth", "mark_precise", "peak_states")
AS_ROOT = "run as root, or with CAP_BPF and CAP_NET_ADMIN"


class Cmd(IntEnum):
    """enum bpf_cmd"""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31


class ProgType(IntEnum):
    """enum bpf_prog_type"""

    SOCKET_FILTER = 1
    KPROBE = 2
    SCHED_CLS = 3
    XDP = 6


class AttachType(IntEnum):
    """enum bpf_attach_type"""

    NONE = 0
    XDP_DEVMAP = 33
    XDP_CPUMAP = 35
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class ProgFlag(IntFlag):
    """BPF_F_* of BPF_PROG_LOAD"""

    XDP_HAS_FRAGS = 1 << 5
    XDP_DEV_BOUND_ONLY = 1 << 6


class RunFlag(IntFlag):
    """BPF_F_TEST_* of BPF_PROG_TEST_RUN"""

    ON_CPU = 1 << 0
    XDP_LIVE_FRAMES = 1 << 1


class XdpFlag(IntFlag):
    """XDP_FLAGS_*, include/uapi/linux/if_link.h"""

    SKB_MODE = 1 << 1
    DRV_MODE = 1 << 2


@dataclass(frozen=True, slots=True)
class TestRun:
    """What BPF_PROG_TEST_RUN wrote into `union bpf_attr.test`: verdict, packet, context, time."""

    __test__ = False  # not a test, whatever pytest makes of the name

    retval: int
    data_out: bytes
    ctx_out: bytes
    duration_ns: int  # of one run, the mean over `repeat`


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]


def bpf(cmd: Cmd, attr: bytearray) -> int:
    """The system call.  `attr` is a `union bpf_attr`, which some commands write to."""
    if not BPF_NUMBER:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    view = (ctypes.c_char * len(attr)).from_buffer(attr)
    result = int(_libc.syscall(BPF_NUMBER, cmd, ctypes.addressof(view), len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf({cmd.name}): {os.strerror(code)}")
    return result


def _pack(layout: str, *fields: int | bytes) -> bytearray:
    return bytearray(struct.pack("=" + layout, *fields))


def _buffer(content: bytes | int) -> ctypes.Array[ctypes.c_char]:
    """Memory the kernel reads (bytes) or writes (a size); keep a reference during the call."""
    if isinstance(content, int):
        return ctypes.create_string_buffer(max(content, 1))
    return ctypes.create_string_buffer(content, max(len(content), 1))


def _object_name(name: str) -> bytes:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)[:_OBJ_NAME_CHARS].encode()


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has (/sys/devices/system/cpu/possible)."""
    with open("/sys/devices/system/cpu/possible") as file:
        ranges = [part.split("-") for part in file.read().strip().split(",")]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


def map_create(map_type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0,
               name: str = "", inner_map_fd: int = 0, numa_node: int = 0,
               map_extra: int = 0, btf_fd: int = 0, key_type_id: int = 0,
               value_type_id: int = 0) -> int:
    """BPF_MAP_CREATE -> file descriptor."""
    return bpf(Cmd.MAP_CREATE, _pack(
        "IIIIIII16sIIII4xQ", map_type, key_size, value_size, max_entries, flags, inner_map_fd,
        numa_node, _object_name(name), 0, btf_fd, key_type_id, value_type_id, map_extra))


def _map_op(cmd: Cmd, fd: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None,
            flags: int = 0) -> None:
    """BPF_MAP_*_ELEM and BPF_MAP_GET_NEXT_KEY: map_fd, key, value or next_key, flags."""
    key_buffer = _buffer(key) if key is not None else None
    bpf(cmd, _pack("I4xQQQ", fd,
                   ctypes.addressof(key_buffer) if key_buffer is not None else 0,
                   ctypes.addressof(value) if value is not None else 0, flags))


def map_lookup(fd: int, key: bytes | None, value_size: int, flags: int = 0) -> bytes:
    """BPF_MAP_LOOKUP_ELEM.  `value_size` is what the kernel writes: for a per-CPU map, all CPUs."""
    value = _buffer(value_size)
    _map_op(Cmd.MAP_LOOKUP_ELEM, fd, key, value, flags)
    return value.raw[:value_size]


def map_lookup_and_delete(fd: int, key: bytes | None, value_size: int, flags: int = 0) -> bytes:
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM; a queue or stack takes no key."""
    value = _buffer(value_size)
    _map_op(Cmd.MAP_LOOKUP_AND_DELETE_ELEM, fd, key, value, flags)
    return value.raw[:value_size]


def map_update(fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
    """BPF_MAP_UPDATE_ELEM; flags are BPF_ANY 0, BPF_NOEXIST 1, BPF_EXIST 2."""
    _map_op(Cmd.MAP_UPDATE_ELEM, fd, key, _buffer(value), flags)


def map_delete(fd: int, key: bytes) -> None:
    """BPF_MAP_DELETE_ELEM"""
    _map_op(Cmd.MAP_DELETE_ELEM, fd, key, None)


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes:
    """BPF_MAP_GET_NEXT_KEY; `key` None asks for the first.  ENOENT after the last."""
    next_key = _buffer(key_size)
    _map_op(Cmd.MAP_GET_NEXT_KEY, fd, key, next_key)
    return next_key.raw[:key_size]


def map_write_batch(cmd: Cmd, fd: int, keys: bytes, values: bytes, count: int) -> None:
    """BPF_MAP_UPDATE_BATCH, or BPF_MAP_DELETE_BATCH without values: `count` keys, one behind the
    other.  It ends at the first that is refused."""
    key_buffer, value_buffer = _buffer(keys), _buffer(values)
    bpf(cmd, _pack("QQQQIIQQ", 0, 0, ctypes.addressof(key_buffer),
                   ctypes.addressof(value_buffer), count, fd, 0, 0))


def map_freeze(fd: int) -> None:
    """BPF_MAP_FREEZE: no more writes from user space, so the verifier may rely on the content."""
    bpf(Cmd.MAP_FREEZE, _pack("I", fd))


def prog_load(code: bytes, prog_type: int = ProgType.XDP, license: str = "GPL", name: str = "",
              flags: int = 0, expected_attach_type: int = AttachType.NONE,
              ifindex: int = 0, btf_fd: int = 0, func_info: bytes = b"") -> int:
    """BPF_PROG_LOAD -> file descriptor, bound to the device `ifindex` where that is not 0.  A
    refusal is asked again for the log: VerifyError.

    `func_info` is (first slot, type in the BTF of `btf_fd`) of each function, as u32."""
    program = (code, prog_type, license, name, flags, expected_attach_type, ifindex, btf_fd,
               func_info)
    try:
        return _prog_load(*program, None)
    except OSError as error:
        refusal = error
    what = f"program {name or 'without a name'}"
    log = _buffer(_LOG_SIZE_BYTES)
    try:
        return _prog_load(*program, log)
    except OSError:
        text = log.value.decode(errors="replace")
    if text.strip():
        raise _verify_error(what, text) from refusal
    mend = AS_ROOT if refusal.errno == errno.EPERM else ""
    raise LoadError(what, f"the kernel refuses it: {refusal.strerror}", mend) from refusal


def _prog_load(code: bytes, prog_type: int, license: str, name: str, flags: int,
               attach_type: int, ifindex: int, btf_fd: int, func_info: bytes,
               log: ctypes.Array[ctypes.c_char] | None) -> int:
    insns, license_buffer = _buffer(code), _buffer(license.encode() + b"\0")
    functions = _buffer(func_info)
    return bpf(Cmd.PROG_LOAD, _pack(
        "IIQQIIQII16sIIIIQI4x", prog_type, len(code) // 8, ctypes.addressof(insns),
        ctypes.addressof(license_buffer), 1 if log is not None else 0,
        len(log) if log is not None else 0, ctypes.addressof(log) if log is not None else 0,
        0, flags, _object_name(name), ifindex, attach_type, btf_fd, 8 if func_info else 0,
        ctypes.addressof(functions) if func_info else 0, len(func_info) // 8))


def btf_load(data: bytes) -> int:
    """BPF_BTF_LOAD -> file descriptor."""
    types = _buffer(data)
    return bpf(Cmd.BTF_LOAD, _pack("QQIII", ctypes.addressof(types), 0, len(data), 0, 0))


def _verify_error(what: str, log: str) -> VerifyError:
    lines = [line.strip() for line in log.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_NOT_A_REASON)]
    slots = re.findall(r"^(\d+): \(", log, re.MULTILINE)
    return VerifyError(what, f"the kernel's verifier says: {reasons[-1] if reasons else log}",
                       detail=log, insn=int(slots[-1]) if slots else None)


def prog_test_run(fd: int, data: bytes, repeat: int = 1, ctx: bytes = b"", out_bytes: int = 0,
                  flags: int = 0, cpu: int = 0, batch_size: int = 0) -> TestRun:
    """BPF_PROG_TEST_RUN.  `ctx` is the context struct, written back at the same size.

    `out_bytes` is the room for the packet; too little is ENOSPC, and live frames take none.
    """
    data_in, data_out = _buffer(data), _buffer(out_bytes)
    ctx_in, ctx_out = _buffer(ctx), _buffer(len(ctx))
    live = bool(flags & RunFlag.XDP_LIVE_FRAMES)
    wants_ctx = ctx and not live
    attr = _pack("IIIIQQIIIIQQIII4x", fd, 0, len(data), out_bytes, ctypes.addressof(data_in),
                 ctypes.addressof(data_out) if out_bytes else 0, repeat, 0,
                 len(ctx), len(ctx) if wants_ctx else 0,
                 ctypes.addressof(ctx_in) if ctx else 0,
                 ctypes.addressof(ctx_out) if wants_ctx else 0, flags, cpu, batch_size)
    bpf(Cmd.PROG_TEST_RUN, attr)
    retval, _, size_out, _, _, _, duration_ns = struct.unpack_from("=IIIQQII", attr, 4)
    return TestRun(retval, data_out.raw[:size_out], ctx_out.raw[:len(ctx)], duration_ns)


def info_by_id(get: Cmd, number: int, size_bytes: int) -> bytes:
    """The first bytes of struct bpf_prog_info or bpf_link_info of the object with that id.  Raises
    OSError: ENOENT when it is gone."""
    fd = bpf(get, _pack("III", number, 0, 0))
    try:
        return info(fd, size_bytes)
    finally:
        os.close(fd)


def info(fd: int, size_bytes: int) -> bytes:
    """The same of an object that is open, or struct bpf_map_info of a map."""
    out = _buffer(size_bytes)
    bpf(Cmd.OBJ_GET_INFO_BY_FD, _pack("IIQ", fd, size_bytes, ctypes.addressof(out)))
    return out.raw[:size_bytes]


def maps_of(program: int) -> list[int]:
    """Ids of the maps that the program with this id uses.  Raises OSError."""
    fd = bpf(Cmd.PROG_GET_FD_BY_ID, _pack("III", program, 0, 0))
    try:
        ids = _buffer(4 * _MAPS_MAX)
        asked = _pack("52xIQ", _MAPS_MAX, ctypes.addressof(ids))  # nr_map_ids, map_ids
        out = _buffer(bytes(asked))
        bpf(Cmd.OBJ_GET_INFO_BY_FD, _pack("IIQ", fd, 64, ctypes.addressof(out)))
        count, = struct.unpack_from("=I", out, 52)
        return list(struct.unpack_from(f"={min(count, _MAPS_MAX)}I", ids))
    finally:
        os.close(fd)


def pinned(path: str) -> int:
    """BPF_OBJ_GET -> file descriptor of the object pinned there."""
    name = _buffer(path.encode() + b"\0")
    return bpf(Cmd.OBJ_GET, _pack("QII", ctypes.addressof(name), 0, 0))


def link_ids() -> Iterator[int]:
    """Ids of all BPF links of this machine, as far as one may see them."""
    attr = _pack("III", 0, 0, 0)
    while True:
        try:
            bpf(Cmd.LINK_GET_NEXT_ID, attr)
        except FileNotFoundError:
            return
        number, = struct.unpack_from("=I", attr, 4)
        yield number
        attr = _pack("III", number, 0, 0)


def link_create(prog_fd: int, target: int, attach_type: int, flags: int = 0) -> int:
    """BPF_LINK_CREATE -> file descriptor; closing it detaches.  `target` is an ifindex or fd."""
    return bpf(Cmd.LINK_CREATE, _pack("IIIIIIQQ", prog_fd, target, attach_type, flags, 0, 0, 0, 0))


_WHY_NO_XDP = {
    errno.EBUSY: ("another XDP program is attached", "detach it: ip link set dev IFACE xdp off"),
    errno.EEXIST: ("an XDP program is attached in another mode", "use one mode"),
    errno.EOPNOTSUPP: ("its driver has no native XDP", "use skb mode"),
    errno.ERANGE: ("its MTU is too large for a program without fragments",
                   'lower the MTU, or put the program in SEC("xdp.frags")'),
    errno.ENODEV: ("there is no such interface in this network namespace", ""),
    errno.EINVAL: ("the kernel calls it invalid", "does the interface exist in this namespace?"),
    errno.EPERM: ("not permitted", AS_ROOT),
}


def attach_xdp_link(prog_fd: int, ifindex: int, flags: int = 0) -> int:
    """BPF_LINK_CREATE of type BPF_XDP -> link fd; closing it detaches.  Raises PortError.

    `flags` is XdpFlag.SKB_MODE or DRV_MODE; 0 lets the kernel choose, native first.
    """
    try:
        return link_create(prog_fd, ifindex, AttachType.XDP, flags)
    except OSError as error:
        why, mend = _WHY_NO_XDP.get(error.errno or 0, (error.strerror or str(error), ""))
        raise PortError(f"attach XDP to interface {ifindex}", why, mend) from error


def attach_tcx_link(prog_fd: int, ifindex: int,
                    attach_type: AttachType = AttachType.TCX_INGRESS) -> int:
    """BPF_LINK_CREATE of type BPF_TCX_INGRESS or _EGRESS -> link fd.  Raises PortError."""
    try:
        return link_create(prog_fd, ifindex, attach_type)
    except OSError as error:
        raise PortError(f"attach {attach_type.name} to interface {ifindex}",
                        error.strerror or str(error)) from error
