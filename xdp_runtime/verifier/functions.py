"""Global functions: proven once by their types, for any arguments (btf_prepare_func_args).

A static function is walked again at each call, with what is known there.  A global one is proven
by itself; a call only checks the arguments and knows nothing of the result.  Memory behind a
pointer is as large as its type and may be null, unless the parameter is tagged `__arg_nonnull`.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdp_runtime import btf as types
from xdp_runtime.btf import Btf
from xdp_runtime.errors import LoadError
from xdp_runtime.helpers.proto import TAIL_CALL, Helper
from xdp_runtime.isa import Call, CallLocal
from xdp_runtime.object import Function
from xdp_runtime.verifier import arguments, references, scalar
from xdp_runtime.verifier.domain import Frame, Kind, Num, Ptr, Reg, State, name_of
from xdp_runtime.verifier.env import Env, Refused
from xdp_runtime.verifier.flow import Flow

NUMBER, CONTEXT, MEMORY, DYNPTR = "number", "context", "memory", "dynptr"
_MAX_PARAMETERS = 5
MAX_STACK_BYTES = 512  # of all frames together, MAX_BPF_STACK
_ROUNDED_TO = 16  # round_up_stack_depth, with a JIT
_MAX_BEFORE_TAIL_CALL = 256


@dataclass(frozen=True, slots=True)
class Parameter:
    kind: str
    size: int = 0
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    parameters: tuple[Parameter, ...]
    returns: bool


def global_functions(env: Env) -> dict[int, Function]:
    """By the slot they begin at; those without types are treated as static."""
    if env.obj.btf is None:
        return {}
    return {f.start: f for f in env.program.functions if f.is_global and f.start and (
        _find(env.obj.btf, f.name) is not None)}


def _find(btf: Btf, name: str) -> int | None:
    for type_id, one in enumerate(btf.types):
        if isinstance(one, types.Func) and one.name == name and one.linkage == 1:
            return type_id
    return None


def signature(btf: Btf, function: Function) -> Signature:
    """Raises Refused for types that a global function may not have."""
    func_id = _find(btf, function.name)
    assert func_id is not None
    func = btf.type(func_id)
    assert isinstance(func, types.Func)
    proto = btf.type(func.type)
    if not isinstance(proto, types.FuncProto) or len(proto.params) > _MAX_PARAMETERS:
        raise Refused("call", f"global function {function.name} has more than "
                      f"{_MAX_PARAMETERS} parameters")
    returned = btf.type(btf.resolve(proto.return_type))
    if not isinstance(returned, types.Void | types.Int | types.EnumType):
        raise Refused("call", f"global function {function.name} does not return a number")
    tags = {(one.type, one.component): one.name for one in btf.types
            if isinstance(one, types.DeclTag)}
    return Signature(tuple(
        _parameter(btf, function, number, type_id, tags.get((func_id, number), ""))
        for number, (_, type_id) in enumerate(proto.params)), not isinstance(returned, types.Void))


def _parameter(btf: Btf, function: Function, number: int, type_id: int, tag: str) -> Parameter:
    one = btf.type(btf.resolve(type_id))
    if isinstance(one, types.Int | types.EnumType):
        return Parameter(NUMBER)
    if isinstance(one, types.Ptr):
        pointed = btf.type(btf.resolve(one.type))
        if tag == "arg:ctx" or (isinstance(pointed, types.Struct) and pointed.name == "xdp_md"):
            return Parameter(CONTEXT)
        if isinstance(pointed, types.Struct | types.Fwd) and pointed.name == "bpf_dynptr":
            return Parameter(DYNPTR)
        try:
            return Parameter(MEMORY, btf.size_of(one.type), tag != "arg:nonnull")
        except LoadError:
            pass
    raise Refused("call", f"parameter {number + 1} of global function {function.name} has a type "
                  "that cannot be proven")


def start_of(env: Env, function: Function) -> State:
    """The state a global function begins in."""
    assert env.obj.btf is not None
    regs: list[Reg] = [None] * 11
    for number, parameter in enumerate(signature(env.obj.btf, function).parameters, 1):
        if parameter.kind == NUMBER:
            regs[number] = Num(scalar.UNKNOWN)
        elif parameter.kind == CONTEXT:
            regs[number] = Ptr(Kind.CTX)
        elif parameter.kind == DYNPTR:
            regs[number] = Ptr(Kind.DYNPTR, id_=env.next_id(), size=references.ANY)
        else:
            regs[number] = Ptr(Kind.MEM, size=parameter.size, nullable=parameter.nullable,
                               id_=env.next_id())
    regs[10] = Ptr(Kind.STACK)
    return State([Frame(regs, {}, -1, function.start)])


def call(env: Env, state: State, function: Function, moves_packet: bool) -> None:
    """Check the arguments; change `state` to what is known after the call."""
    assert env.obj.btf is not None
    if state.lock is not None:
        raise Refused("lock", f"global function {function.name} is called while a spin lock is "
                      "held")
    regs = state.top.regs
    who = function.name
    parameters = signature(env.obj.btf, function).parameters
    for number, parameter in enumerate(parameters, 1):
        value = regs[number]
        if value is None:
            raise Refused("uninit", f"{who}: r{number} holds nothing", regs=(number,))
        if parameter.kind == NUMBER:
            if not isinstance(value, Num):
                raise Refused("call", f"{who}: r{number} must be a number, is {name_of(value)}",
                              regs=(number,))
        elif parameter.kind == CONTEXT:
            if not isinstance(value, Ptr) or value.kind is not Kind.CTX or value.off:
                raise Refused("call", f"{who}: r{number} must be the context, is "
                              f"{name_of(value)}", regs=(number,))
        elif parameter.kind == DYNPTR:
            references.dynptr(env, state, number, value)
        else:
            _memory(env, state, who, number, parameter, value)
    if moves_packet:
        from xdp_runtime.verifier.calls import forget_packet

        forget_packet(state)
    regs[0:6] = [Num(scalar.UNKNOWN), None, None, None, None, None]


def _memory(env: Env, state: State, who: str, number: int, parameter: Parameter,
            value: Num | Ptr) -> None:
    if parameter.nullable and isinstance(value, Num) and value.range.is_const and (
            value.range.const == 0):
        return
    if isinstance(value, Ptr) and value.nullable and parameter.nullable:
        value = value.but(nullable=False)
    try:
        for write in (False, True):
            arguments.memory(env, state, who, number, value, parameter.size, write=write)
    except Refused as error:
        raise Refused("call", str(error), error.mend, error.regs) from error
    if isinstance(value, Ptr) and value.kind is Kind.STACK:
        arguments.clobber(env, state, number, value, parameter.size, parameter.size)


def check_result(env: Env, state: State, function: Function) -> None:
    """At the end of a global function."""
    assert env.obj.btf is not None
    value = state.top.regs[0]
    if signature(env.obj.btf, function).returns:
        if value is None:
            raise Refused("uninit", f"r0 holds nothing at the end of {function.name}", regs=(0,))
        if not isinstance(value, Num):
            raise Refused("return", f"r0 is {name_of(value)} at the end of global function "
                          f"{function.name}", regs=(0,))


def moving_functions(env: Env, flow: Flow, starts: list[int]) -> set[int]:
    """Functions in which, or in what they call, a helper may move the packet's edges."""
    moving: set[int] = set()
    calls = _calls(env, flow, starts)
    changed = True
    while changed:
        changed = False
        for start, (helpers, callees) in calls.items():
            if start not in moving and (
                    any(_moves(env.entry.helpers.get(n)) for n in helpers) or callees & moving):
                moving.add(start)
                changed = True
    return moving


def _moves(helper: Helper | None) -> bool:
    return helper is not None and (helper.changes_packet or helper.id == TAIL_CALL)


def _calls(env: Env, flow: Flow, starts: list[int]) -> dict[int, tuple[set[int], set[int]]]:
    """(helpers, functions) that each function calls or takes the address of."""
    found: dict[int, tuple[set[int], set[int]]] = {}
    bounds = [*starts[1:], len(env.insns)]
    for start, end in zip(starts, bounds, strict=True):
        helpers: set[int] = set()
        callees: set[int] = set()
        for slot in range(start, end):
            insn = env.insns[slot]
            if isinstance(insn, Call):
                helpers.add(insn.helper)
            elif insn is not None and (isinstance(insn, CallLocal) or slot in flow.functions):
                callees.add(flow.target[slot])
        found[start] = helpers, callees
    return found


def check_stack(env: Env, flow: Flow, starts: list[int]) -> None:
    """All frames of any chain of calls fit into one stack (check_max_stack_depth).

    What a timer runs is a chain of its own, unless it is called as well."""
    called = {flow.target[slot] for slot, insn in enumerate(env.insns)
              if isinstance(insn, CallLocal)}
    calls = _calls(env, flow, starts)
    tail = {start for start, (helpers, _) in calls.items() if TAIL_CALL in helpers}

    def walk(start: int, depth: int, chain: tuple[int, ...]) -> None:
        if chain and start in tail and depth >= _MAX_BEFORE_TAIL_CALL:
            raise Refused("stack", f"bpf_tail_call in a function whose callers use {depth} bytes "
                          f"of stack, {_MAX_BEFORE_TAIL_CALL} or more")
        depth += -(-env.stack_used.get(start, 0) // _ROUNDED_TO) * _ROUNDED_TO
        if depth > MAX_STACK_BYTES:
            raise Refused("stack", f"{len(chain) + 1} nested calls use {depth} bytes of stack, "
                          f"more than {MAX_STACK_BYTES}")
        for callee in sorted(calls[start][1] - (env.later - called)):
            if callee in chain or callee == start:
                raise Refused("call", f"the function at instruction {callee} calls itself")
            walk(callee, depth, (*chain, start))

    for first in (starts[0], *sorted(env.later)):
        walk(first, 0, ())
