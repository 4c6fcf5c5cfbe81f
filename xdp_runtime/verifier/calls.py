"""Helper calls: is every argument what the prototype wants, and what is true afterwards?
(check_helper_call, kernel/bpf/verifier.c)

A call may have more than one outcome: the other ones are appended to `others`, as (slot, state)
or, where the function at hand is left at once, (LEAVE, state).
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers import kernel_name
from xdp_runtime.helpers.proto import TAIL_CALL, Arg, Helper, Ret
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.isa import POISON
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.verifier import access, arguments, callbacks, kfuncs, references, scalar, stack
from xdp_runtime.verifier.domain import (
    Kind,
    Num,
    Ptr,
    Reg,
    Slot,
    State,
    mark_precise,
)
from xdp_runtime.verifier.env import Env, Refused

__all__ = ["LEAVE", "TAIL_CALL", "call", "forget_packet", "helper_of"]

LEAVE = -2
_SPIN_LOCK, _SPIN_UNLOCK, _SNPRINTF, _TIMER_INIT, _DYNPTR_FROM_MEM = 93, 94, 165, 169, 197
_DYNPTR_FROM_XDP = KERNEL_FUNCTIONS["bpf_dynptr_from_xdp"]
_CLONE = KERNEL_FUNCTIONS["bpf_dynptr_clone"]
_SLICE, _SLICE_RDWR = (KERNEL_FUNCTIONS[f"bpf_dynptr_slice{end}"] for end in ("", "_rdwr"))
_WRITTEN = (Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL, Arg.FIXED_UNINIT, Arg.MAP_VALUE_UNINIT,
            Arg.BUFFER_OR_NULL)
_ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
_GPL = frozenset({"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL",
                  "Dual MPL/GPL"})  # license_is_gpl_compatible
_MAX_ERRNO = 4095
_XDP_SOCK_BYTES = 4  # struct bpf_xdp_sock
Outcomes = list[tuple[int, State]]


def helper_of(env: Env, number: int) -> Helper:
    if number == POISON:
        why, mend = next(((why, mend) for slot, why, mend in env.program.poisoned
                          if slot == env.slot), ("it cannot be relocated", ""))
        raise Refused("helper", why, mend)
    helper = env.entry.helpers.get(number)
    if helper is None or not helper.xdp:
        name = kernel_name(number)
        which = name if name.startswith("helper ") else f"helper {name} (number {number})"
        raise Refused("helper", f"{which} is "
                      + ("not supported" if helper is None else "not for XDP programs"))
    if (helper.gpl_only or helper.is_function) and env.obj.license not in _GPL:
        raise Refused("helper", f"{kernel_name(number)} is for programs under the GPL, this one "
                      f"is {env.obj.license!r}", 'char _license[] SEC("license") = "GPL";')
    return helper


def call(env: Env, state: State, number: int, others: Outcomes) -> None:
    """Prove the call and change `state` from before to after it.  Raises Refused."""
    helper = helper_of(env, number)
    regs = state.top.regs
    if state.lock is not None and number != _SPIN_UNLOCK:
        raise Refused("lock", f"{helper.name} is called while a spin lock is held")
    spec: MapSpec | None = None
    map_ptr: Ptr | None = None
    for position, arg in enumerate(helper.args, 1):
        if arg is Arg.UNCHECKED:
            continue
        value = regs[position]
        if value is None:
            raise Refused("uninit", f"{helper.name}: r{position} holds nothing",
                          regs=(position,))
        if arg is Arg.MAP:
            spec = arguments.map_argument(env, helper, position, value)
            assert isinstance(value, Ptr)
            map_ptr = value
        else:
            arguments.check(env, state, helper, spec, arg, position, value)
    if Arg.CALLBACK in helper.args:
        inner = callbacks.push(env, state, number, spec)
        if inner is not None:
            others.append(inner)
        state.top.depth = 0
    if number == _SNPRINTF:
        arguments.check_format(env, state)
    never_null = map_ptr is not None and spec is not None and number == 1 and (
        _constant_index(state, map_ptr, spec))
    result = _result(env, state, helper, map_ptr, spec, never_null)
    _effects(env, state, helper)
    if number == TAIL_CALL:
        _tail_call(env, state, others)
    if helper.changes_packet:
        forget_packet(state)
    regs[1:6] = [None] * 5
    regs[0] = result


def _effects(env: Env, state: State, helper: Helper) -> None:
    """What the call does to memory, references and locks."""
    regs = state.top.regs
    for position, arg in enumerate(helper.args, 1):
        value = regs[position]
        if arg in _WRITTEN:
            arguments.overwritten(env, state, helper, position)
        elif arg is Arg.DYNPTR_UNINIT:
            assert value is not None
            _make_dynptr(env, state, helper, value)
        elif arg in (Arg.RECORD, Arg.SOCKET_RELEASE):
            assert isinstance(value, Ptr)
            references.release(state, value.ref)
        elif arg is Arg.DYNPTR_RELEASE:
            assert value is not None
            references.release(state, references.dynptr(env, state, position, value).ref)
        elif arg is Arg.SPIN_LOCK:
            assert isinstance(value, Ptr)
            _lock(state, helper, value)
    if helper.id == _TIMER_INIT:
        timer, owner = regs[1], regs[2]
        assert isinstance(timer, Ptr) and isinstance(owner, Ptr)
        if timer.map != owner.map:
            raise Refused("map", "timer_init: r2 is not the map that the timer in r1 is in",
                          regs=(1, 2))


def _make_dynptr(env: Env, state: State, helper: Helper, value: Num | Ptr) -> None:
    if helper.id == _DYNPTR_FROM_XDP:
        references.make_dynptr(env, state, value, references.PACKET, False)
        return
    if helper.id == _CLONE:
        source = state.top.regs[1]
        assert source is not None
        old = references.dynptr(env, state, 1, source)
        references.make_dynptr(env, state, value, old.size or references.LOCAL, old.readonly,
                               old.ref)
        return
    if helper.id != _DYNPTR_FROM_MEM:
        references.make_dynptr(env, state, value, references.RING, False)
        return
    data = state.top.regs[1]
    if not isinstance(data, Ptr) or data.kind is not Kind.MAP_VALUE:
        raise Refused("type", "dynptr_from_mem: r1 must point into a map's value", regs=(1,))
    references.make_dynptr(env, state, value, references.LOCAL, False)


def _lock(state: State, helper: Helper, value: Ptr) -> None:
    if helper.id == _SPIN_LOCK:
        state.lock = value.map, value.id
    elif state.lock is None:
        raise Refused("lock", "bpf_spin_unlock without a lock that is held", regs=(1,))
    elif state.lock != (value.map, value.id):
        raise Refused("lock", "bpf_spin_unlock of another lock than is held", regs=(1,))
    else:
        state.lock = None


def _constant_index(state: State, map_ptr: Ptr, spec: MapSpec) -> bool:
    """The key of an array lookup is a constant within the array: the lookup cannot fail."""
    key = state.top.regs[2]
    if map_ptr.size or spec.type not in _ARRAYS or spec.flags & MapFlag.INNER_MAP:
        return False
    if not isinstance(key, Ptr) or key.kind is not Kind.STACK or key.var is not None:
        return False
    if spec.key_size != 4 or key.off % 4:
        return False
    frame = state.frames[key.frame]
    value = stack.read(frame, key.off, 4) if -512 <= key.off <= -4 else None
    slot = frame.stack.get(key.off)
    if slot is not None and slot.size == 8:  # the kernel wants a number of the key's size
        return False
    if not isinstance(value, Num) or not value.range.is_const:
        return False
    index = value.range.const
    if index is None or index >= spec.max_entries:
        return False
    mark_precise(value.tokens)
    return True


def _tail_call(env: Env, state: State, others: Outcomes) -> None:
    if state.refs:
        raise Refused("reference", "bpf_tail_call while a reference is held", "release it before")
    kfuncs.check_left(state, "bpf_tail_call")
    if len(state.frames) > 1:  # what is called returns to the caller of this function
        if env.obj.btf is None:
            raise Refused("call", "bpf_tail_call in a function needs types (BTF)",
                          "compile with -g")
        left = state.copy()
        forget_packet(left)
        left.top.regs[0] = Num(scalar.UNKNOWN)
        others.append((LEAVE, left))


_PACKET = (Kind.PACKET, Kind.PACKET_META, Kind.PACKET_END)


def _of_packet(value: Reg) -> bool:
    return isinstance(value, Ptr) and (
        value.kind in _PACKET or (value.kind is Kind.MEM and value.range == 1))


def forget_packet(state: State) -> None:
    """clear_all_pkt_pointers: a helper moved the packet's ends."""
    for frame in state.frames:
        for number, value in enumerate(frame.regs):
            if _of_packet(value):
                frame.regs[number] = Num(scalar.UNKNOWN)
        stale = [base for base, slot in frame.stack.items() if _of_packet(slot.value)]
        if stale:
            own = frame.writable()
            for base in stale:
                old = own[base]
                own[base] = Slot(None, 0, 0xFF, 0, old.token)


def _result(env: Env, state: State, helper: Helper, map_ptr: Ptr | None, spec: MapSpec | None,
            never_null: bool) -> Reg:
    match helper.ret:
        case Ret.SCALAR:
            if helper.returns_size:
                return Num(_error_or_size(state, helper))
            if helper.below is not None:
                return Num(scalar.from_range(0, helper.below() - 1))
            return Num(scalar.UNKNOWN)
        case Ret.VOID:
            return None
        case Ret.MAP_VALUE_OR_NULL:
            assert map_ptr is not None and spec is not None
            number = env.next_id()
            if spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
                return Ptr(Kind.MAP, map_=map_ptr.map, nullable=True, id_=number, size=1)
            if spec.type == MapType.XSKMAP:
                return Ptr(Kind.MEM, nullable=True, id_=number, size=_XDP_SOCK_BYTES,
                           readonly=True)
            return Ptr(Kind.MAP_VALUE, map_=map_ptr.map, id_=number, nullable=not never_null,
                       keep_id=bool(env.fields(spec)))
        case Ret.RECORD_OR_NULL:
            reference = references.acquire(env, state)
            return Ptr(Kind.MEM, nullable=True, id_=reference, ref=reference,
                       size=_constant(state, helper))
        case Ret.SOCKET_OR_NULL:
            reference = references.acquire(env, state)
            return Ptr(Kind.SOCKET, nullable=True, id_=reference, ref=reference)
        case Ret.DATA_OR_NULL:
            source = state.top.regs[1]
            assert source is not None
            dynptr = references.dynptr(env, state, 1, source)
            if helper.id not in (_SLICE, _SLICE_RDWR):
                return Ptr(Kind.MEM, nullable=True, id_=env.next_id(), owner=dynptr.id,
                           size=_constant(state, helper), readonly=dynptr.readonly)
            # only records end before the program; what else a slice is of outlives the dynptr
            return Ptr(Kind.MEM, nullable=True, id_=env.next_id(),
                       owner=dynptr.id if dynptr.ref else 0,
                       size=_constant(state, helper), readonly=helper.id == _SLICE,
                       range_=int(dynptr.size in (references.PACKET, references.ANY)),
                       buffer=_buffer(state.top.regs[3], _constant(state, helper)))
        case Ret.OBJECT:
            raise Refused("helper", f"{helper.name} returns an object of the kernel, which does "
                          "not exist here", REFUSED.get(helper.id, ""))
        case _:
            assert_never(helper.ret)


def _buffer(value: Reg, size: int) -> tuple[int, int, int] | None:
    """Where on the stack a slice may lie that was given this buffer."""
    if not isinstance(value, Ptr) or value.kind is not Kind.STACK:
        return value.buffer if isinstance(value, Ptr) else None
    low, high = access.stack_range(3, value, 0)
    return value.frame, low, high + size


def _constant(state: State, helper: Helper) -> int:
    """The number in the CONST_SIZE argument; the kernel keeps 32 bits of it (mem_size)."""
    value = state.top.regs[helper.args.index(Arg.CONST_SIZE) + 1]
    assert isinstance(value, Num)
    return value.range.umax & 0xFFFF_FFFF


def _error_or_size(state: State, helper: Helper) -> scalar.Scalar:
    most = 0
    for position, arg in enumerate(helper.args, 1):
        if arg in (Arg.SIZE, Arg.SIZE_OR_ZERO):
            length = state.top.regs[position]
            assert isinstance(length, Num)
            most = length.range.umax
    return scalar.from_signed_range(-_MAX_ERRNO, most)
