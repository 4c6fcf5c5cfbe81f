"""Does an access stay inside its object?  One rule for each kind of pointer.

Limits and rules are the kernel's (check_mem_access and what it calls, kernel/bpf/verifier.c).
Messages say what was known and what would have proven it.
"""

from __future__ import annotations

from xdp_runtime.isa import STACK_SIZE_BYTES
from xdp_runtime.object import MapFlag, MapType
from xdp_runtime.state import XDP_MD, XDP_MD_SIZE_BYTES
from xdp_runtime.verifier import scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, Reg, State, mark_precise, name_of
from xdp_runtime.verifier.env import Env, Refused

MAX_VAR_OFF = 1 << 29  # BPF_MAX_VAR_OFF
_PACKET = (Kind.PACKET, Kind.PACKET_META)


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
        _stack(number, ptr, off, size, atomic)
    elif kind is Kind.MAP_VALUE:
        _map_value(env, number, ptr, off, size, write, zero_size)
        if atomic:
            _aligned(number, ptr, off, size)
    elif kind is Kind.MEM or kind is Kind.MAP_KEY:
        limit = ptr.size if kind is Kind.MEM else env.maps[ptr.map].key_size
        if write and (ptr.readonly or kind is Kind.MAP_KEY):
            raise Refused("readonly", f"r{number} points to read-only memory", regs=(number,))
        _region(number, ptr, off, size, limit, "memory", zero_size)
        if atomic:
            _aligned(number, ptr, off, size)
    elif kind is Kind.MAP and not write:
        _map_struct(number, off, size)
    else:
        raise Refused("type", f"r{number} is {name_of(ptr)}, which cannot be "
                      f"{'written' if write else 'read'} through", regs=(number,))
    if env.observer is not None:
        env.observer.access(env.slot, ptr, off, size, write)


def _map_struct(number: int, off: int, size: int) -> None:
    raise Refused("type", f"r{number} is a map, whose inside cannot be read here", regs=(number,))


def _packet(number: int, ptr: Ptr, off: int, size: int, zero_size: bool) -> None:
    if ptr.var is not None and ptr.var.smin < 0:
        raise Refused("bounds", f"the offset in r{number} may be negative "
                      f"({scalar.describe(ptr.var)})", "use an unsigned offset with a limit",
                      regs=(number,))
    where = ptr.off + off
    if where < 0 or where + size > ptr.range or (size == 0 and not zero_size):
        what = "data" if ptr.kind is Kind.PACKET else "data_meta"
        raise Refused(
            "bounds", f"{size} bytes at offset {where} of the packet are not proven to exist "
            f"(proven: {ptr.range} bytes)",
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
            raise Refused("bounds", f"{size} bytes at offset {base} are outside the {what} "
                          f"({limit} bytes)", regs=(number,))
        return
    if var.smin + base < 0:
        raise Refused("bounds", f"the offset in r{number} may be negative "
                      f"({scalar.describe(var)})",
                      "make the index unsigned or check that it is >= 0", regs=(number,))
    if var.smax >= MAX_VAR_OFF:
        raise Refused("bounds", f"the offset in r{number} has no upper limit "
                      f"({scalar.describe(var)})",
                      f"check that the index keeps within {limit} bytes", regs=(number,))
    if base + var.smax + size > limit:
        raise Refused("bounds", f"{size} bytes at offset {base} + up to {var.smax} may lie "
                      f"outside the {what} ({limit} bytes)",
                      f"check that the index is at most {max(limit - size - base, 0)}",
                      regs=(number,))


def _map_value(env: Env, number: int, ptr: Ptr, off: int, size: int, write: bool,
               zero_size: bool) -> None:
    spec = env.maps[ptr.map]
    if write and spec.flags & MapFlag.RDONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is read-only for programs", regs=(number,))
    if not write and spec.flags & MapFlag.WRONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is write-only for programs", regs=(number,))
    limit = inner_spec_size(env, ptr)
    _region(number, ptr, off, size, limit, f"value of map {spec.name}", zero_size)


def inner_spec_size(env: Env, ptr: Ptr) -> int:
    """Bytes of the value a map value pointer points into."""
    spec = env.maps[ptr.map]
    if ptr.size:
        return ptr.size
    if spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS) and spec.inner is not None:
        return spec.inner.value_size
    return spec.value_size


def _aligned(number: int, ptr: Ptr, off: int, size: int) -> None:
    where = ptr.off + off
    mask, value = (0, 0) if ptr.var is None else (ptr.var.mask, ptr.var.value)
    if (where + value) % size or mask & (size - 1):
        raise Refused("align", f"{size} bytes at offset {where} of r{number} are not aligned",
                      regs=(number,))


def _stack(number: int, ptr: Ptr, off: int, size: int, atomic: bool) -> None:
    low, high = stack_range(number, ptr, off)
    if (size and (ptr.off + off + (ptr.var.value if ptr.var is not None else 0)) % size) or (
            ptr.var is not None and ptr.var.mask & (size - 1)):
        raise Refused("align", f"{size} bytes of stack at r10{low:+d} are not aligned",
                      regs=(number,))
    check_stack_bounds(number, low, high + size)


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
    if low < -STACK_SIZE_BYTES or high > 0 or low >= 0 > high:
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
