"""Ring buffers.

A record is acquired by reserve and released by submit or discard, exactly once on every path; so
is a dynptr of a ring buffer (dynptr.py), even where reserving failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helpers.dynptr import Dynptr, put
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.interp_memory import Pointer, Region
from xdp_runtime.maps.model import ModelRing
from xdp_runtime.maps.ringbuf import COMMIT, DISCARD, FORCE_WAKEUP, NO_WAKEUP
from xdp_runtime.maps.user_ring_model import ModelUserRing
from xdp_runtime.maps.user_ringbuf import EBUSY, SAMPLES_MAX
from xdp_runtime.object import MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine
    from xdp_runtime.interp_memory import Value

Factory = Callable[..., Any]
EINVAL = 22
_DYNPTR_BASE, _SAMPLE_BASE = 0x2E0000000000, 0x2D0000000000  # that no other region has


def _interpret_output(machine: Machine, map: ModelRing, data: bytes, size: int, flags: int) -> int:
    return map.output(data, flags)


def _interpret_reserve(machine: Machine, map: ModelRing, size: int, flags: int) -> Pointer | int:
    record = map.reserve(size) if not flags else None
    return 0 if record is None else machine.value_pointer(map, record)


def _interpret_submit(machine: Machine, record: Pointer, flags: int) -> int:
    return _release(machine, record, keep=True)


def _interpret_discard(machine: Machine, record: Pointer, flags: int) -> int:
    return _release(machine, record, keep=False)


def _release(machine: Machine, record: Pointer, keep: bool) -> int:
    for model in machine.maps:
        if isinstance(model, ModelRing):
            model.commit(record.region.data, keep)
    return 0


def _interpret_query(machine: Machine, map: ModelRing, what: int) -> int:
    return map.query(what)


def _commit(name: str, discard: int) -> Template:
    def factory(m: Any) -> Factory:
        commit = m.extern(COMMIT)

        def release(record, flags):  # type: ignore
            return commit(record, flags, discard)

        return release

    return Template(name, factory, "i64(ptr, i64)", (COMMIT,))


def _interpret_drain(machine: Machine, map: ModelUserRing, code: Value, handed: Value, flags: int
                     ) -> int:
    """The compiled form is lowering's own around two operations of the map (user_ringbuf.py)."""
    if flags & ~(NO_WAKEUP | FORCE_WAKEUP):
        return -EINVAL
    if map.busy:
        return -EBUSY
    map.busy = True
    place = Pointer(Region("a dynptr", bytearray(16), 0, 0, _DYNPTR_BASE, writable=False), 0)
    answer = seen = rounds = 0
    while rounds < SAMPLES_MAX and not answer:
        sample = map.peek_sample()
        if isinstance(sample, int):
            if sample < 0:
                seen = sample
            break
        rounds += 1
        if sample is None:
            continue
        seen += 1
        region = Region("a sample", sample, 0, len(sample), _SAMPLE_BASE)
        put(place, Dynptr(Pointer(region, 0), len(sample)))
        answer = machine.call_back(code, [place, handed])
        map.release(sample)
    map.busy = False
    return seen


_RING = frozenset({MapType.RINGBUF})

HELPERS = (
    Helper(130, "ringbuf_output", (Arg.MAP, Arg.MEM, Arg.SIZE_OR_ZERO, Arg.ANYTHING), Ret.SCALAR,
           _interpret_output, map_op="output", maps=_RING),
    Helper(131, "ringbuf_reserve", (Arg.MAP, Arg.CONST_SIZE, Arg.ANYTHING), Ret.RECORD_OR_NULL,
           _interpret_reserve, map_op="reserve", maps=_RING),
    Helper(132, "ringbuf_submit", (Arg.RECORD, Arg.ANYTHING), Ret.VOID, _interpret_submit,
           _commit("ringbuf_submit", 0)),
    Helper(133, "ringbuf_discard", (Arg.RECORD, Arg.ANYTHING), Ret.VOID, _interpret_discard,
           _commit("ringbuf_discard", DISCARD)),
    Helper(134, "ringbuf_query", (Arg.MAP, Arg.ANYTHING), Ret.SCALAR, _interpret_query,
           map_op="query", maps=_RING),
    Helper(209, "user_ringbuf_drain",
           (Arg.MAP, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR, _interpret_drain,
           map_op="drain", maps=frozenset({MapType.USER_RINGBUF})),
)
