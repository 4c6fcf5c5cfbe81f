"""Helper calls: is every argument what the prototype wants, and what is r0 afterwards?

The prototypes are data (helpers/proto.py); this file only knows what each kind of argument means
(check_helper_call, check_func_arg, kernel/bpf/verifier.c).
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.helpers import kernel_name
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.isa import POISON
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.verifier import access, scalar, stack
from xdp_runtime.verifier.domain import (
    Kind,
    Num,
    Ptr,
    Reg,
    Slot,
    State,
    mark_precise,
    name_of,
)
from xdp_runtime.verifier.env import Env, Refused

TAIL_CALL = 12
_MAX_SIZE = 1 << 29  # BPF_MAX_VAR_SIZ
_LOOKUP = frozenset({
    MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE, MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS,
    MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.XSKMAP})
_CHANGE = frozenset({
    MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE})
# check_map_func_compatibility: which maps a helper takes
_TAKES: dict[int, frozenset[MapType]] = {
    1: _LOOKUP, 2: _CHANGE, 3: _CHANGE, TAIL_CALL: frozenset({MapType.PROG_ARRAY}),
}
_PACKET = (Kind.PACKET, Kind.PACKET_META)
_ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)


def helper_of(env: Env, number: int) -> Helper:
    if number == POISON:
        lacking = dict(env.program.poisoned).get(env.slot, "what this instruction needs")
        raise Refused("helper", f"the target's types do not have {lacking}",
                      "ask bpf_core_field_exists or its like first")
    helper = env.entry.helpers.get(number)
    if helper is None:
        raise Refused("helper", f"helper {kernel_name(number)} (number {number}) is not supported")
    return helper


def spec_of(env: Env, ptr: Ptr) -> MapSpec:
    """The definition behind a map pointer; `size` 1 marks an inner map, just looked up."""
    spec = env.maps[ptr.map]
    return spec.inner if ptr.size and spec.inner is not None else spec


def call(env: Env, state: State, number: int) -> None:
    """Prove the call and change `state` from before to after it.  Raises Refused."""
    helper = helper_of(env, number)
    regs = state.top.regs
    spec: MapSpec | None = None
    map_ptr: Ptr | None = None
    if state.lock and number not in (93, 94):
        raise Refused("lock", f"{helper.name} is called while a spin lock is held")
    for position, arg in enumerate(helper.args, 1):
        if arg is Arg.UNCHECKED:
            continue
        value = regs[position]
        if value is None:
            raise Refused("uninit", f"{helper.name}: r{position} holds nothing",
                          regs=(position,))
        if arg is Arg.MAP:
            if not isinstance(value, Ptr) or value.kind is not Kind.MAP or value.nullable:
                raise Refused("helper", f"{helper.name}: r{position} must be a map, is "
                              f"{name_of(value)}", regs=(position,))
            map_ptr, spec = value, spec_of(env, value)
            _check_map(helper, spec)
        else:
            _argument(env, state, helper, spec, arg, position, value)
    never_null = spec is not None and helper.ret is Ret.MAP_VALUE_OR_NULL and (
        _constant_index(state, spec))
    for position, arg in enumerate(helper.args, 1):
        if arg is Arg.MEM_UNINIT:
            _overwritten(state, helper, position)
    if number == TAIL_CALL:
        _tail_call(env, state)
    if helper.changes_packet:
        forget_packet(state)
    regs[1:6] = [None] * 5
    regs[0] = _result(env, helper, map_ptr, spec, never_null)


def _check_map(helper: Helper, spec: MapSpec) -> None:
    takes = _TAKES.get(helper.id)
    if takes is not None and spec.type not in takes:
        kind = MapType(spec.type).name if spec.type in set(MapType) else str(spec.type)
        raise Refused("map", f"{helper.name} does not work on map {spec.name} of type {kind}")
    if helper.id in (2, 3) and spec.flags & MapFlag.RDONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is read-only for programs")
    if helper.id == 1 and spec.flags & MapFlag.WRONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is write-only for programs")


def _argument(env: Env, state: State, helper: Helper, spec: MapSpec | None, arg: Arg,
              position: int, value: Num | Ptr) -> None:
    match arg:
        case Arg.ANYTHING | Arg.UNCHECKED:
            pass
        case Arg.CTX:
            if not isinstance(value, Ptr) or value.kind is not Kind.CTX or value.off:
                raise Refused("helper", f"{helper.name}: r{position} must be the context, is "
                              f"{name_of(value)}", regs=(position,))
        case Arg.MAP_KEY | Arg.MAP_VALUE:
            assert spec is not None
            size = spec.key_size if arg is Arg.MAP_KEY else spec.value_size
            memory(env, state, helper.name, position, value, size, write=False)
        case Arg.TEXT:
            memory(env, state, helper.name, position, value, 1, write=False)
        case Arg.MEM | Arg.MEM_OR_NULL | Arg.MEM_UNINIT:
            _sized_memory(env, state, helper, arg, position, value)
        case Arg.SIZE | Arg.SIZE_OR_ZERO:
            pass  # checked with the memory before it
        case Arg.MAP:
            raise AssertionError("handled by the caller")
        case _:
            assert_never(arg)


def _sized_memory(env: Env, state: State, helper: Helper, arg: Arg, position: int,
                  value: Num | Ptr) -> None:
    length = state.top.regs[position + 1]
    number = position + 1
    if not isinstance(length, Num):
        raise Refused("helper", f"{helper.name}: r{number} must be a length, is "
                      f"{name_of(length)}", regs=(number,))
    span = length.range
    zero_ok = helper.args[position] is Arg.SIZE_OR_ZERO
    if span.smin < 0:
        raise Refused("bounds", f"{helper.name}: the length in r{number} may be negative "
                      f"({scalar.describe(span)})", "make it unsigned or check that it is >= 0",
                      regs=(number,))
    if span.umin == 0 and not zero_ok:
        raise Refused("bounds", f"{helper.name}: the length in r{number} may be 0",
                      f"check that r{number} > 0", regs=(number,))
    if span.umax >= _MAX_SIZE:
        raise Refused("bounds", f"{helper.name}: the length in r{number} has no upper limit",
                      "check it against the size of the buffer", regs=(number,))
    mark_precise(length.tokens)
    if arg is Arg.MEM_OR_NULL and isinstance(value, Num) and value.range.is_const and (
            value.range.const == 0):
        mark_precise(value.tokens)
        if span.umax:
            raise Refused("helper", f"{helper.name}: r{position} is null, r{number} is not 0",
                          regs=(position, number))
        return
    if arg is Arg.MEM_OR_NULL and isinstance(value, Ptr) and value.nullable and not span.umax:
        return
    memory(env, state, helper.name, position, value, span.umax,
           write=arg is Arg.MEM_UNINIT, zero_size=zero_ok)


def memory(env: Env, state: State, who: str, position: int, value: Num | Ptr, size: int, *,
           write: bool, zero_size: bool = False) -> None:
    """`size` bytes that a helper reads or writes."""
    if isinstance(value, Num):
        raise Refused("helper", f"{who}: r{position} must point to memory, is a number",
                      regs=(position,))
    if value.nullable:
        raise Refused("null", f"{who}: r{position} is {name_of(value)}",
                      f"check `r{position} != 0` first", regs=(position,))
    if value.kind is Kind.STACK:
        low, high = access.stack_range(position, value, 0)
        if size == 0:
            return
        access.check_stack_bounds(position, low, high + size)
        if value.var is not None:
            mark_precise(value.tokens)
        if not write:
            stack.touch(state.frames[value.frame], low, high + size)
        return
    if value.kind in _PACKET or value.kind in (Kind.MAP_VALUE, Kind.MEM, Kind.MAP_KEY):
        access.check(env, state, position, value, 0, size, write=write, zero_size=zero_size)
        return
    raise Refused("helper", f"{who}: r{position} must point to memory, is {name_of(value)}",
                  regs=(position,))


def _overwritten(state: State, helper: Helper, position: int) -> None:
    value, length = state.top.regs[position], state.top.regs[position + 1]
    if isinstance(value, Ptr) and value.kind is Kind.STACK and isinstance(length, Num):
        frame = state.frames[value.frame]
        low, high = access.stack_range(position, value, 0)
        if low == high and length.range.is_const:
            if length.range.umax:
                stack.scatter(frame, low, length.range.umax, zero=False)
        else:
            stack.scatter_somewhere(frame, low, high + length.range.umax)


def _constant_index(state: State, spec: MapSpec) -> bool:
    """The key of an array lookup is a constant within the array: the lookup cannot fail."""
    key = state.top.regs[2]
    if spec.type not in _ARRAYS or not isinstance(key, Ptr) or key.kind is not Kind.STACK or (
            key.var is not None):
        return False
    if spec.key_size != 4 or key.off % 4:
        return False
    value = stack.read(state.frames[key.frame], key.off, 4) if -512 <= key.off <= -4 else None
    if not isinstance(value, Num) or not value.range.is_const:
        return False
    index = value.range.const
    if index is None or index >= spec.max_entries:
        return False
    mark_precise(value.tokens)
    return True


def _tail_call(env: Env, state: State) -> None:
    if len(state.frames) > 1 and env.obj.btf is None:
        raise Refused("call", "bpf_tail_call in a function needs BTF", "compile with -g")
    if state.refs:
        raise Refused("reference", "bpf_tail_call while a reference is held", "release it before")


def forget_packet(state: State) -> None:
    """clear_all_pkt_pointers: a helper moved the packet's ends."""
    packet = (Kind.PACKET, Kind.PACKET_META, Kind.PACKET_END)
    for frame in state.frames:
        for number, value in enumerate(frame.regs):
            if isinstance(value, Ptr) and value.kind in packet:
                frame.regs[number] = Num(scalar.UNKNOWN)
        stale = [base for base, slot in frame.stack.items()
                 if isinstance(slot.value, Ptr) and slot.value.kind in packet]
        if stale:
            own = frame.writable()
            for base in stale:
                old = own[base]
                own[base] = Slot(None, 0, 0xFF, 0, old.token)


def _result(env: Env, helper: Helper, map_ptr: Ptr | None, spec: MapSpec | None,
            never_null: bool) -> Reg:
    match helper.ret:
        case Ret.SCALAR:
            return Num(scalar.UNKNOWN)
        case Ret.VOID:
            return None
        case Ret.MAP_VALUE_OR_NULL:
            assert map_ptr is not None and spec is not None
            if spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
                return Ptr(Kind.MAP, map_=map_ptr.map, nullable=True, id_=env.next_id(), size=1)
            return Ptr(Kind.MAP_VALUE, map_=map_ptr.map, id_=env.next_id(),
                       nullable=not never_null, size=spec.value_size if map_ptr.size else 0)
        case _:
            assert_never(helper.ret)
