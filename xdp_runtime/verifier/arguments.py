"""Arguments of helpers: is each what its prototype wants? (check_func_arg)

The prototypes are data (helpers/proto.py).  One rule for each kind of argument.
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.helpers import HELPERS, printf
from xdp_runtime.helpers.proto import Arg, Helper
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType
from xdp_runtime.verifier import access, references, scalar, stack
from xdp_runtime.verifier.access import value_spec
from xdp_runtime.verifier.domain import Kind, Num, Ptr, State, mark_precise, name_of
from xdp_runtime.verifier.env import Env, Refused
from xdp_runtime.verifier.fields import SPIN_LOCK, TIMER

WITH_TEXT = frozenset(helper.id for helper in HELPERS.values() if Arg.STRING in helper.args)
ENDS_ITSELF = 1 << 30  # constant text
_MAX_SIZE = 1 << 29  # BPF_MAX_VAR_SIZ
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
_PACKET = (Kind.PACKET, Kind.PACKET_META)
_MEMORY = (Arg.MEM, Arg.MEM_OR_NULL, Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL, Arg.FIXED,
           Arg.FIXED_UNINIT, Arg.MAP_KEY, Arg.MAP_VALUE, Arg.MAP_VALUE_UNINIT)


def spec_of(env: Env, ptr: Ptr) -> MapSpec:
    """The definition behind a map pointer; `size` 1 marks an inner map, just looked up."""
    spec = env.maps[ptr.map]
    if not ptr.size:
        return spec
    if spec.inner is None:
        raise Refused("map", f"the maps in {spec.name} have no definition")
    return spec.inner


def map_argument(env: Env, helper: Helper, position: int, value: Num | Ptr) -> MapSpec:
    """The map in r<position>, of a type that the helper takes."""
    if not isinstance(value, Ptr) or value.kind is not Kind.MAP or value.nullable:
        raise Refused("type", f"{helper.name}: r{position} must be a map, is {name_of(value)}",
                      regs=(position,))
    spec = spec_of(env, value)
    if helper.maps is not None and spec.type not in helper.maps:
        kind = MapType(spec.type).name if spec.type in set(MapType) else str(spec.type)
        raise Refused("map", f"{helper.name} does not work on map {spec.name} of type {kind}",
                      regs=(position,))
    if helper.writes_map and spec.flags & MapFlag.RDONLY_PROG:
        raise Refused("readonly", f"map {spec.name} is read-only for programs", regs=(position,))
    return spec


def check(env: Env, state: State, helper: Helper, spec: MapSpec | None, arg: Arg,
          position: int, value: Num | Ptr) -> None:
    """Raises Refused unless r<position> is what `arg` asks for."""
    who = helper.name
    if arg in _MEMORY and not helper.packet and isinstance(value, Ptr) and value.kind in _PACKET:
        raise Refused("type", f"{who}: r{position} may not point into the packet",
                      "copy what is needed to the stack", regs=(position,))
    match arg:
        case Arg.ANYTHING | Arg.UNCHECKED:
            pass
        case Arg.NUMBER:
            if not isinstance(value, Num):
                raise _wanted(who, position, value, "a number")
        case Arg.BUFFER_OR_NULL:
            _buffer(env, state, who, position, value)
        case Arg.STRING:
            _string(env, state, who, position, value)
        case Arg.CTX:
            if not isinstance(value, Ptr) or value.kind is not Kind.CTX or value.off:
                raise Refused("type", f"{who}: r{position} must be the context, is "
                              f"{name_of(value)}", regs=(position,))
        case Arg.MAP_KEY | Arg.MAP_VALUE:
            assert spec is not None
            size = spec.key_size if arg is Arg.MAP_KEY else spec.value_size
            memory(env, state, who, position, value, size, write=False)
        case Arg.MAP_VALUE_UNINIT:
            assert spec is not None
            memory(env, state, who, position, value, spec.value_size,
                   write=spec.type != MapType.BLOOM_FILTER)  # to which a peek is a question
        case Arg.TEXT:
            memory(env, state, who, position, value, 1, write=False)
        case Arg.FIXED | Arg.FIXED_UNINIT:
            size, written = helper.size_of(position), arg is Arg.FIXED_UNINIT
            if not written or helper.is_function:  # a function may read, too, what it writes
                memory(env, state, who, position, value, size, write=False)
            if written:
                memory(env, state, who, position, value, size, write=True)
            if written and not helper.is_function and isinstance(value, Ptr):
                access.check_aligned(position, value, 0, size)
        case Arg.MEM | Arg.MEM_OR_NULL | Arg.MEM_UNINIT | Arg.MEM_UNINIT_OR_NULL:
            _sized_memory(env, state, helper, arg, position, value)
        case Arg.SIZE | Arg.SIZE_OR_ZERO:
            pass  # checked with the memory before it
        case Arg.CONST_SIZE:
            if not isinstance(value, Num) or not value.range.is_const:
                raise Refused("type", f"{who}: the size in r{position} must be a constant",
                              regs=(position,))
            mark_precise(value.tokens)
        case Arg.RECORD | Arg.SOCKET_RELEASE:
            _released(who, position, value, Kind.MEM if arg is Arg.RECORD else Kind.SOCKET)
        case Arg.SOCKET:
            if not isinstance(value, Ptr) or value.kind is not Kind.SOCKET or value.nullable:
                raise _wanted(who, position, value, "a socket")
        case Arg.DYNPTR:
            references.dynptr(env, state, position, value)
        case Arg.DYNPTR_UNINIT:
            references.prepare_dynptr(env, state, position, value)
        case Arg.DYNPTR_RELEASE:
            if not references.dynptr(env, state, position, value).ref:
                raise Refused("reference", f"{who}: the dynptr r{position} points to is not one "
                              "of a ring buffer", regs=(position,))
        case Arg.SPIN_LOCK | Arg.TIMER:
            _field(env, who, position, value, SPIN_LOCK if arg is Arg.SPIN_LOCK else TIMER)
        case Arg.CONST_TEXT:
            _const_text(env, who, position, value)
        case Arg.CALLBACK:
            if not isinstance(value, Ptr) or value.kind is not Kind.FUNC:
                raise _wanted(who, position, value, "a function")
        case Arg.STACK_OR_NULL:
            null = isinstance(value, Num) and value.range.is_const and value.range.const == 0
            if not null and not (isinstance(value, Ptr) and value.kind is Kind.STACK):
                raise _wanted(who, position, value, "a pointer into the stack, or null")
        case Arg.OBJECT:
            raise Refused("type", f"{who}: r{position} must be an object of the kernel, which no "
                          "program here can have", REFUSED.get(helper.id, ""), regs=(position,))
        case (Arg.MAP | Arg.ITERATOR | Arg.ITERATOR_UNINIT | Arg.IRQ_FLAGS
              | Arg.IRQ_FLAGS_UNINIT):
            raise AssertionError("handled by the caller")
        case _:
            assert_never(arg)


def _buffer(env: Env, state: State, who: str, position: int, value: Num | Ptr) -> None:
    """Memory of as many bytes as the constant behind it says, or null."""
    size = state.top.regs[position + 1]
    if not isinstance(size, Num) or not size.range.is_const:
        raise Refused("type", f"{who}: the size in r{position + 1} must be a constant",
                      regs=(position + 1,))
    if isinstance(value, Num) and value.range.is_const and value.range.const == 0:
        mark_precise(value.tokens)
        return
    if size.range.umax >= _MAX_SIZE:
        raise Refused("bounds", f"{who}: the size in r{position + 1} is too large",
                      regs=(position + 1,))
    if isinstance(value, Ptr) and value.nullable:
        value = value.but(nullable=False)
    for write in (False, True):
        memory(env, state, who, position, value, size.range.umax, write=write, zero_size=True)


def _string(env: Env, state: State, who: str, position: int, value: Num | Ptr) -> None:
    """Memory that may hold text.  The kernel takes any address and finds out; here the end of what
    the pointer points into ends every string, so that has to be known."""
    memory(env, state, who, position, value, 1, write=False)
    assert isinstance(value, Ptr)
    if value.var is None or (value.kind is Kind.MAP_VALUE and env.maps[value.map].type in ARRAYS):
        return
    if value.kind in (Kind.MAP_VALUE, Kind.MEM, Kind.MAP_KEY):
        raise Refused("bounds", f"{who}: r{position} must point to text at a constant offset",
                      "copy the text to the stack", regs=(position,))


def room(env: Env, value: Ptr) -> int:
    """Bytes behind a pointer that `_string` let pass; 0: that is known only when it runs."""
    if value.kind is Kind.MAP_VALUE:
        if value.var is not None:
            return 0
        spec = value_spec(env, value)
        if spec.global_kind is GlobalKind.RODATA and (
                b"\0" in spec.initial.ljust(spec.value_size, b"\0")[value.off:]):
            return ENDS_ITSELF
        return spec.value_size - value.off
    return value.size - value.off if value.kind in (Kind.MEM, Kind.MAP_KEY) else 0


def _wanted(who: str, position: int, value: Num | Ptr, what: str) -> Refused:
    if isinstance(value, Ptr) and value.nullable:
        return Refused("null", f"{who}: r{position} is {name_of(value)}",
                       f"check `r{position} != 0` first", regs=(position,))
    return Refused("type", f"{who}: r{position} must be {what}, is {name_of(value)}",
                   regs=(position,))


def _released(who: str, position: int, value: Num | Ptr, kind: Kind) -> None:
    what = "a ring buffer's record" if kind is Kind.MEM else "a socket"
    if not isinstance(value, Ptr) or value.kind is not kind or value.nullable or not value.ref:
        raise _wanted(who, position, value, what)
    if value.off or value.var is not None:
        raise Refused("reference", f"{who}: r{position} must point to the beginning of {what}",
                      regs=(position,))


def _field(env: Env, who: str, position: int, value: Num | Ptr, name: str) -> None:
    """A pointer to the lock or timer of a map's value, at a constant offset."""
    if not isinstance(value, Ptr) or value.kind is not Kind.MAP_VALUE or value.nullable:
        raise _wanted(who, position, value, f"a struct {name} in a map's value")
    spec = value_spec(env, value)
    fields = [field for field in env.fields(spec) if field.name == name]
    if not fields:
        raise Refused("lock", f"{who}: the value of map {spec.name} has no struct {name}",
                      "give the map a value type (BTF) that has one", regs=(position,))
    if value.var is not None or value.off != fields[0].offset:
        raise Refused("lock", f"{who}: r{position} does not point to the struct {name} at offset "
                      f"{fields[0].offset}", regs=(position,))


def _const_text(env: Env, who: str, position: int, value: Num | Ptr) -> None:
    if not isinstance(value, Ptr) or value.kind is not Kind.MAP_VALUE or value.nullable:
        raise _wanted(who, position, value, "text in a frozen map (.rodata)")
    spec = value_spec(env, value)
    if spec.global_kind is not GlobalKind.RODATA:
        raise Refused("type", f"{who}: r{position} points into map {spec.name}, which is not "
                      "frozen", "make the text a constant", regs=(position,))
    if value.var is not None or not 0 <= value.off < spec.value_size:
        raise Refused("bounds", f"{who}: r{position} must point into {spec.name} at a constant "
                      "offset", regs=(position,))
    if b"\0" not in spec.initial.ljust(spec.value_size, b"\0")[value.off:]:
        raise Refused("bounds", f"{who}: the text r{position} points to has no end",
                      regs=(position,))


def check_format(env: Env, state: State) -> None:
    """snprintf's format, which is known, with so many arguments (check_bpf_snprintf_call).

    The kernel takes the bits that are known of the size, and zeros for the others."""
    text, size = state.top.regs[3], state.top.regs[5]
    assert isinstance(text, Ptr) and isinstance(size, Num)
    mark_precise(size.tokens)
    known = size.range.value
    if known % 8:
        raise Refused("helper", "snprintf: the size in r5 is not a multiple of 8", regs=(5,))
    spec = value_spec(env, text)
    format_ = spec.initial.ljust(spec.value_size, b"\0")[text.off:]
    if isinstance(printf.prepare(format_, (0,) * (known // 8), None), int):
        shown = format_.split(b"\0")[0].decode(errors="replace")
        raise Refused("helper", f"snprintf: the kernel takes no format {shown!r} with "
                      f"{known // 8} arguments", "one argument for each %, and only %d %i %u %x "
                      "%X with l or ll, %c, %s and the kinds of %p that helpers may print",
                      regs=(3, 5))


def _sized_memory(env: Env, state: State, helper: Helper, arg: Arg, position: int,
                  value: Num | Ptr) -> None:
    length = state.top.regs[position + 1]
    number = position + 1
    if not isinstance(length, Num):
        raise Refused("type", f"{helper.name}: r{number} must be a length, is "
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
    if arg in (Arg.MEM_OR_NULL, Arg.MEM_UNINIT_OR_NULL):
        if isinstance(value, Num) and value.range.is_const and value.range.const == 0:
            mark_precise(value.tokens)
            if span.umax:
                raise Refused("type", f"{helper.name}: r{position} is null, r{number} is not 0",
                              regs=(position, number))
            return
        if isinstance(value, Ptr) and value.nullable and not span.umax:
            return
    write = arg in (Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL)
    memory(env, state, helper.name, position, value, span.umax, write=write, zero_size=zero_ok)


def memory(env: Env, state: State, who: str, position: int, value: Num | Ptr, size: int, *,
           write: bool, zero_size: bool = False) -> None:
    """`size` bytes that a helper reads or writes."""
    if isinstance(value, Num):
        raise Refused("type", f"{who}: r{position} must point to memory, is a number",
                      regs=(position,))
    if value.nullable:
        raise Refused("null", f"{who}: r{position} is {name_of(value)}",
                      f"check `r{position} != 0` first", regs=(position,))
    if value.kind is Kind.STACK:
        low, high = access.stack_range(position, value, 0)
        access.check_stack_bounds(position, low, high + size)
        if size == 0:
            return
        if value.var is not None:
            mark_precise(value.tokens)
        frame = state.frames[value.frame]
        env.use_stack(frame, low)
        references.no_objects(frame, low, high + size)
        if not write:
            stack.touch(frame, low, high + size)
        return
    if value.kind in _PACKET or value.kind in (Kind.MAP_VALUE, Kind.MEM, Kind.MAP_KEY):
        access.check(env, state, position, value, 0, size, write=write, zero_size=zero_size)
        return
    raise Refused("type", f"{who}: r{position} must point to memory, is {name_of(value)}",
                  regs=(position,))


def overwritten(env: Env, state: State, helper: Helper, position: int) -> None:
    """After the call: what of the stack did the helper write through r<position>?"""
    value = state.top.regs[position]
    if not isinstance(value, Ptr):
        return
    if value.kind is not Kind.STACK:
        forget_buffer(env, state, value)
        return
    arg = helper.args[position - 1]
    if arg is Arg.FIXED_UNINIT:
        size = span = helper.size_of(position)
    elif arg is Arg.MAP_VALUE_UNINIT:
        map_ptr = state.top.regs[helper.args.index(Arg.MAP) + 1]
        assert isinstance(map_ptr, Ptr)
        spec = spec_of(env, map_ptr)
        if spec.type == MapType.BLOOM_FILTER:
            return
        size = span = spec.value_size
    else:
        length = state.top.regs[position + 1]
        assert isinstance(length, Num)
        size, span = length.range.umax, length.range.umax
        if not length.range.is_const:
            size = 0
    clobber(env, state, position, value, size, span)


def forget_buffer(env: Env, state: State, value: Ptr) -> None:
    """What was written through the pointer may have been a buffer on the stack."""
    if value.buffer is not None and value.buffer[0] < len(state.frames):
        depth, low, high = value.buffer
        references.overwrite(state, state.frames[depth], low, high)
        stack.scatter_somewhere(state.frames[depth], low, high)
        env.write_stack(low, high)


def clobber(env: Env, state: State, position: int, value: Ptr, size: int, most: int) -> None:
    """`size` bytes of stack (0: not known, `most` at most) hold anything now."""
    if not most:
        return
    frame = state.frames[value.frame]
    low, high = access.stack_range(position, value, 0)
    references.overwrite(state, frame, low, high + most)
    env.write_stack(low, high + most)
    if low == high and size:
        stack.scatter(frame, low, size, zero=False)
    else:
        stack.scatter_somewhere(frame, low, high + most)
