"""Objects that call kernel functions, as the kernel wants them: by their ids in its own types."""

from __future__ import annotations

from dataclasses import replace

from tests.xdp_runtime.verifier.kernel_load import kfunc_ids
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import Call, CallKfunc, Insns
from xdp_runtime.object import Object

_NAMES = {number: name for name, number in KERNEL_FUNCTIONS.items()}


def for_kernel(obj: Object) -> Object:
    """The same, for load_into_kernel."""
    return replace(obj, programs=tuple(
        replace(one, insns=_called(one.insns)) for one in obj.programs))


def _called(insns: Insns) -> Insns:
    return tuple(CallKfunc(kfunc_ids()[_NAMES[insn.helper]], 0)
                 if isinstance(insn, Call) and insn.helper in _NAMES else insn for insn in insns)
