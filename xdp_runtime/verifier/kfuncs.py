"""Kernel functions that have a meaning here: iterators over numbers (bpf_iter_num_*).

They are called by the id of an extern function in the object's own BTF.  All others are refused:
they are the kernel's.
"""

from __future__ import annotations

from xdp_runtime.btf_types import Func
from xdp_runtime.errors import LoadError
from xdp_runtime.verifier import references, scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, State, name_of
from xdp_runtime.verifier.env import Env, Refused

NEW, NEXT, DESTROY = "bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy"

ARENA_FUNCTIONS = ("bpf_arena_alloc_pages", "bpf_arena_free_pages", "bpf_arena_reserve_pages")


def name_of_kfunc(env: Env, btf_id: int) -> str:
    """"" where the object does not say."""
    if env.obj.btf is None:
        return ""
    try:
        one = env.obj.btf.type(btf_id)
    except LoadError:
        return ""
    return one.name if isinstance(one, Func) else ""


def call(env: Env, state: State, btf_id: int) -> State | None:
    """Change `state` from before to after the call; the other outcome, if there is one."""
    name = name_of_kfunc(env, btf_id)
    if name in ARENA_FUNCTIONS:
        raise Refused("helper", f"{name} is for programs that may sleep, an XDP program may not",
                      "user space makes the pages: Map.mmap")
    if name not in (NEW, NEXT, DESTROY):
        raise Refused("helper", f"kernel function {name or f'(BTF id {btf_id})'} does not exist "
                      "in user space")
    if state.lock is not None:
        raise Refused("lock", f"{name} is called while a spin lock is held")
    regs = state.top.regs
    for number in range(1, 4 if name == NEW else 2):
        if regs[number] is None:
            raise Refused("uninit", f"{name}: r{number} holds nothing", regs=(number,))
    value = regs[1]
    assert value is not None
    other = None
    if name == NEW:
        for number in (2, 3):
            if not isinstance(regs[number], Num):
                raise Refused("type", f"{name}: r{number} must be a number, is "
                              f"{name_of(regs[number])}", regs=(number,))
        references.make_iterator(env, state, 1, value)
        regs[0] = Num(scalar.UNKNOWN)
    else:
        frame, off, found = references.iterator(env, state, 1, value)
        if name == DESTROY:
            references.release(state, found.ref)
            regs[0] = None
        else:
            if found.size == references.ACTIVE:
                other = state.copy()
                other.rounds += 1
                other.top.regs[0] = Ptr(Kind.MEM, size=4, readonly=True)
                other.top.regs[1:6] = [None] * 5
            references.drain(frame, off, found)
            regs[0] = Num(scalar.const(0))
    regs[1:6] = [None] * 5
    return other
