"""Kernel functions with rules of their own: iterators over numbers (bpf_iter_num_*), and sections
that must be left again (RCU, preemption, interrupts).

An object calls them by name; reading it makes that the call of a helper with a number of its own
(helper_names.py).  The id of an extern function in the object's own BTF is understood, too.
"""

from __future__ import annotations

from xdp_runtime.btf_types import Func
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.iterator import ITER_DESTROY, ITER_NEW, ITER_NEXT
from xdp_runtime.refused_functions import ARENA_FUNCTIONS, REFUSED_FUNCTIONS
from xdp_runtime.verifier import references, scalar
from xdp_runtime.verifier.domain import Kind, Num, Ptr, State, name_of
from xdp_runtime.verifier.env import Env, Refused

_RCU_LOCK, _RCU_UNLOCK, _DISABLE, _ENABLE, _IRQ_SAVE, _IRQ_RESTORE = (
    KERNEL_FUNCTIONS[f"bpf_{name}"] for name in (
        "rcu_read_lock", "rcu_read_unlock", "preempt_disable", "preempt_enable",
        "local_irq_save", "local_irq_restore"))
_ITERATORS = (ITER_NEW, ITER_NEXT, ITER_DESTROY)
SPECIAL = frozenset({*_ITERATORS, _RCU_LOCK, _RCU_UNLOCK, _DISABLE, _ENABLE, _IRQ_SAVE,
                     _IRQ_RESTORE})


def name_of_kfunc(env: Env, btf_id: int) -> str:
    """"" where the object does not say."""
    if env.obj.btf is None:
        return ""
    try:
        one = env.obj.btf.type(btf_id)
    except LoadError:
        return ""
    return one.name if isinstance(one, Func) else ""


def number_of(env: Env, btf_id: int) -> int:
    """The number that a kernel function has here.  Raises Refused, with the reason."""
    name = name_of_kfunc(env, btf_id)
    number = KERNEL_FUNCTIONS.get(name)
    if number is None:
        why = (REFUSED_FUNCTIONS.get(name) or ARENA_FUNCTIONS.get(name)
               or "does not exist in user space")
        raise Refused("helper", f"kernel function {name or f'(BTF id {btf_id})'}: {why}")
    return number


def call(env: Env, state: State, number: int) -> State | None:
    """Change `state` from before to after the call; the other outcome, if there is one."""
    regs = state.top.regs
    if state.lock is not None and number not in _ITERATORS:
        raise Refused("lock", "a kernel function is called while a spin lock is held")
    other = None
    if number in _ITERATORS:
        other = _iterate(env, state, number)
    elif number in (_IRQ_SAVE, _IRQ_RESTORE):
        value = regs[1]
        if value is None:
            raise Refused("uninit", "r1 holds nothing", regs=(1,))
        if number == _IRQ_SAVE:
            references.save_irq(env, state, 1, value)
        else:
            references.restore_irq(env, state, 1, value)
        regs[0] = None
    else:
        _section(state, number)
        regs[0] = None
    regs[1:6] = [None] * 5
    return other


def _section(state: State, number: int) -> None:
    if number == _RCU_LOCK:
        if state.rcu:
            raise Refused("lock", "bpf_rcu_read_lock in a section that it began already")
        state.rcu = 1
    elif number == _RCU_UNLOCK:
        if not state.rcu:
            raise Refused("lock", "bpf_rcu_read_unlock without bpf_rcu_read_lock")
        state.rcu = 0
    elif number == _DISABLE:
        state.preempt += 1
    elif not state.preempt:
        raise Refused("lock", "bpf_preempt_enable without bpf_preempt_disable")
    else:
        state.preempt -= 1


def _iterate(env: Env, state: State, number: int) -> State | None:
    regs, name = state.top.regs, f"bpf_{env.entry.helpers[number].name}"
    for position in range(1, 4 if number == ITER_NEW else 2):
        if regs[position] is None:
            raise Refused("uninit", f"{name}: r{position} holds nothing", regs=(position,))
    value = regs[1]
    assert value is not None
    other = None
    if number == ITER_NEW:
        for position in (2, 3):
            if not isinstance(regs[position], Num):
                raise Refused("type", f"{name}: r{position} must be a number, is "
                              f"{name_of(regs[position])}", regs=(position,))
        references.make_iterator(env, state, 1, value)
        regs[0] = Num(scalar.UNKNOWN)
        return None
    frame, off, found = references.iterator(env, state, 1, value)
    if number == ITER_DESTROY:
        references.release(state, found.ref)
        regs[0] = None
        return None
    if found.size == references.ACTIVE:
        other = state.copy()
        other.rounds += 1
        other.top.regs[0] = Ptr(Kind.MEM, size=4, readonly=True, owner=found.ref)
        other.top.regs[1:6] = [None] * 5
    references.drain(frame, off, found)
    regs[0] = Num(scalar.const(0))
    return other


def check_left(state: State, what: str) -> None:
    """Every section was left again."""
    if state.rcu:
        raise Refused("lock", f"{what} in a section of bpf_rcu_read_lock", "unlock it before")
    if state.preempt:
        raise Refused("lock", f"{what} in a section of bpf_preempt_disable", "enable it before")
    if state.irqs:
        raise Refused("lock", f"{what} in a section of bpf_local_irq_save", "restore it before")
