"""Does an access stay inside its object?  One rule for each kind of pointer.

Limits and rules are the kernel's (check_mem_access and what it calls, kernel/bpf/verifier.c).
Messages say what was known and what would have proven it.
"""

from __future__ import annotations

from xdp_runtime.isa import STACK_SIZE_BYTES
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType
from xdp_runtime.state import XDP_MD, XDP_MD_SIZE_BYTES
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, Reg, State, mark_precise, name_of
from xdp_runtime.verifier.env import Env, Refused

MAX_VAR_OFF = 1 << 29  # BPF_MAX_VAR_OFF
SOCKET_BYTES = 80  # struct bpf_sock
_PACKET = (Kind.PACKET, Kind.PACKET_META)
_CONSTANT = (GlobalKind.RODATA, GlobalKind.KCONFIG)
_LOOKED_AT = (MapType.DEVMAP, MapType.DEVMAP_HASH)  # their values are the kernel's


def pointer(reg: Reg, number: int) -> Ptr:
    """The register as something that can be dereferenced."""
    if isinstance(reg, Num):
        raise Refused("type", f"r{number} is a number and cannot be dereferenced",
                      regs=(number,))
    if reg is None:
        raise Refused("uninit", f"r{number} holds nothing", regs=(number,))
    if reg.nullable:
        raise Refused("null", f"r{number} is {name_of(reg)}", f"check `r{number} != 0` first",
                      regs=(number,))
    return reg


def check(env: Env, state: State, number: int, ptr: Ptr, off: int, size: int, *, write: bool,
          atomic: bool = False, zero_size: bool = False) -> None:
    """Prove `size` bytes at ptr + off accessible.  Raises Refused."""
    kind = ptr.kind
    if ptr.var is not None:
        mark_precise(ptr.tokens)
    if kind in _PACKET:
        _packet(number, ptr, off, size, zero_size)
        if atomic:
            raise Refused("type", f"r{number}: atomic operations on packet data are not allowed",
                          regs=(number,))
    elif kind is Kind.STACK:
        _stack(env, state, number, ptr, off, size, write)
    elif kind is Kind.MAP_VALUE:
        _map_value(env, number, ptr, off, size, write, zero_size)
        if atomic:
            check_aligned(number, ptr, off, size)
    elif kind is Kind.MEM or kind is Kind.MAP_KEY:
        if write and (ptr.readonly or kind is Kind.MAP_KEY):
            raise Refused("readonly", f"r{number} points to read-only memory", regs=(number,))
        _region(number, ptr, off, size, ptr.size, "memory", zero_size)
        if atomic:
            check_aligned(number, ptr, off, size)
    elif kind is Kind.SOCKET:
        if write:
            raise Refused("readonly", f"r{number} points to a socket", regs=(number,))
        if size > 4:
            raise Refused("type", f"{_bytes(size)} of a socket cannot be read", regs=(number,))
        _region(number, ptr, off, size, SOCKET_BYTES, "socket", False)
        if atomic:
            raise Refused("type", f"r{number}: atomic operations on sockets are not allowed",
                          regs=(number,))
        check_aligned(number, ptr, off, size)
    elif kind is not Kind.ARENA:  # of which every access is safe
        raise Refused("type", f"r{number} is {name_of(ptr)}, which cannot be "
                      f"{'written' if write else 'read'} through", regs=(number,))
    if env.observer is not None:
        env.observer.access(env.slot, ptr, off, size, write)


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


def _packet(number: int, ptr: Ptr, off: int, size: int, zero_size: bool) -> None:
    if ptr.var is not None and ptr.var.smin < 0:
        raise Refused("bounds", f"the offset in r{number} may be negative "
                      f"({scalar.describe(ptr.var)})", "use an unsigned offset with a limit",
                      regs=(number,))
    where = ptr.off + off
    if where < 0 or where + size > ptr.range or (size == 0 and not zero_size):
        what = "data" if ptr.kind is Kind.PACKET else "data_meta"
        raise Refused(
            "bounds", f"{_bytes(size)} at offset {where} of the packet "
            f"{'is' if size == 1 else 'are'} not proven to exist (proven: {_bytes(ptr.range)})",
            f"what lies before `{what}` is not the packet's" if where < 0 else
            f"check `{what} + {where + size} <= data_end` before this access"
            if ptr.var is None else "compare this very pointer plus its size with data_end first",
            regs=(number,))


def _region(number: int, ptr: Ptr, off: int, size: int, limit: int, what: str,
            zero_size: bool) -> None:
    """check_mem_region_access: [min, max] of the offset against the object's size."""
    base = ptr.off + off
    var = ptr.var
    if size == 0 and not zero_size:
        raise Refused("bounds", f"an access of no bytes through r{number}", regs=(number,))
    if var is None:
        if base < 0 or base + size > limit:
            raise Refused("bounds", f"{_bytes(size)} at offset {base}: outside the {what} "
                          f"({limit} bytes)", regs=(number,))
        return
    if var.smin + base < 0:
        raise Refused("bounds", f"the offset in r{number} may be negative "
                      f"({scalar.describe(var)})",
                      "make the index unsigned or check that it is >= 0", regs=(number,))
    if var.umax >= MAX_VAR_OFF:  # also where it may be negative, whatever room there is before
        raise Refused("bounds", f"the offset in r{number} has no upper limit "
                      f"({scalar.describe(var)})",
                      f"check that the index keeps within {limit} bytes", regs=(number,))
    if base + var.smax + size > limit:
        raise Refused("bounds", f"{_bytes(size)} at offset {base} + up to {var.smax} may lie "
                      f"outside the {what} ({limit} bytes)",
                      f"check that the index is at most {max(limit - size - base, 0)}",
                      regs=(number,))


def _map_value(env: Env, number: int, ptr: Ptr, off: int, size: int, write: bool,
               zero_size: bool) -> None:
    spec = value_spec(env, ptr)
    if write and (spec.flags & MapFlag.RDONLY_PROG or spec.global_kind in _CONSTANT
                  or spec.type in _LOOKED_AT):
        raise Refused("readonly", f"map {spec.name} is read-only for programs", regs=(number,))
    if not write and spec.flags & MapFlag.WRONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is write-only for programs", regs=(number,))
    _region(number, ptr, off, size, spec.value_size, f"value of map {spec.name}", zero_size)
    for field in env.fields(spec):
        low = high = ptr.off + off
        if ptr.var is not None:
            low, high = low + ptr.var.smin, high + ptr.var.smax
        if low < field.offset + field.size and field.offset < high + size:
            raise Refused("lock", f"r{number}: the struct {field.name} in the value of map "
                          f"{spec.name} is for helpers only", regs=(number,))


def value_spec(env: Env, ptr: Ptr) -> MapSpec:
    """The definition of the map that a map value pointer points into."""
    spec = env.maps[ptr.map]
    if spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS) and spec.inner is not None:
        return spec.inner
    return spec


def check_aligned(number: int, ptr: Ptr, off: int, size: int) -> None:
    where = ptr.off + off
    mask, value = (0, 0) if ptr.var is None else (ptr.var.mask, ptr.var.value)
    if (where + value) % size or mask & (size - 1):
        raise Refused("align", f"{size} bytes at offset {where} of r{number} are not aligned",
                      regs=(number,))


def _stack(env: Env, state: State, number: int, ptr: Ptr, off: int, size: int, write: bool
           ) -> None:
    low, high = stack_range(number, ptr, off)
    if (size and (ptr.off + off + (ptr.var.value if ptr.var is not None else 0)) % size) or (
            ptr.var is not None and ptr.var.mask & (size - 1)):
        raise Refused("align", f"{size} bytes of stack at r10{low:+d} are not aligned",
                      regs=(number,))
    check_stack_bounds(number, low, high + size)
    env.use_stack(state.frames[ptr.frame], low)


def stack_range(number: int, ptr: Ptr, off: int) -> tuple[int, int]:
    """(lowest, highest) offset from the frame's top that ptr + off may have."""
    base = ptr.off + off
    if ptr.var is None:
        return base, base
    if (ptr.var.umax >= MAX_VAR_OFF and ptr.var.smax >= MAX_VAR_OFF) or (
            ptr.var.smin <= -MAX_VAR_OFF):
        raise Refused("stack", f"the stack offset in r{number} has no limits "
                      f"({scalar.describe(ptr.var)})", regs=(number,))
    return base + ptr.var.smin, base + ptr.var.smax


def check_stack_bounds(number: int, low: int, high: int) -> None:
    if low < -STACK_SIZE_BYTES or high > 0 or low >= 0:
        raise Refused("stack", f"stack bytes [r10{low:+d}, r10{high:+d}) are outside the "
                      f"{STACK_SIZE_BYTES} bytes of the frame", regs=(number,))


def context_field(env: Env, off: int, size: int, write: bool, signed: bool) -> int:
    """The offset in struct xdp_md of a valid read.  Raises Refused."""
    if write:
        raise Refused("context", "struct xdp_md is read-only")
    if size != 4 or off not in XDP_MD or (signed and XDP_MD[off][1]):
        raise Refused("context", f"{size} bytes at offset {off} of struct xdp_md "
                      f"({XDP_MD_SIZE_BYTES} bytes, six 32-bit fields)")
    if off == 20 and not env.program.kind.endswith("/devmap"):
        raise Refused("context", "egress_ifindex is only there for xdp/devmap programs")
    return off
