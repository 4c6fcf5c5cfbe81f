"""Maps, time, chance, the worker's number, and the tail call.

The map helpers have no template of their own: the family of the map brings it.  The tail call has
none because lowering makes it a branch to the other program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helpers.proto import TAIL_CALL, Arg, Helper, Ret
from xdp_runtime.maps.model import ModelOfMaps
from xdp_runtime.object import MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer
    from xdp_runtime.maps.model import ModelMap, ModelQueue

Factory = Callable[..., Any]
ENOENT = 2
_CLOCK_MONOTONIC = 1
_STAR = 0x2545F4914F6CDD1D  # xorshift64*: Vigna, "An experimental exploration of Marsaglia's..."
_FIRST_SEED = 0x9E3779B97F4A7C15 & ((1 << 63) - 1)  # instead of a state of 0, which stays 0
_U64 = (1 << 64) - 1


# --- maps ----------------------------------------------------------------------------------------
def _interpret_lookup(machine: Machine, map: ModelMap, key: bytes) -> Pointer | int:
    if isinstance(map, ModelOfMaps):
        inner = map.inner.get(bytes(key))
        return 0 if inner is None else machine.map_pointer(inner)
    cell = map.lookup(key, machine.cpu)
    return 0 if cell is None else machine.value_pointer(map, cell)


def _interpret_update(
    machine: Machine, map: ModelMap, key: bytes, value: bytes, flags: int
) -> int:
    return map.update(key, value, flags, machine.cpu)


def _interpret_delete(machine: Machine, map: ModelMap, key: bytes) -> int:
    return map.delete(key)


def _interpret_lookup_percpu(machine: Machine, map: ModelMap, key: bytes, cpu: int
                             ) -> Pointer | int:
    cpu &= 0xFFFFFFFF
    if cpu >= machine.cpus:
        return 0
    cell = map.lookup(key, cpu)
    return 0 if cell is None else machine.value_pointer(map, cell)


# --- queues, stacks and bloom filters ------------------------------------------------------------
def _interpret_push(machine: Machine, map: ModelQueue, value: bytes, flags: int) -> int:
    return map.push(value, flags)


def _interpret_pop(machine: Machine, map: ModelQueue, place: Pointer) -> int:
    return _take(map, place, remove=True)


def _interpret_peek(machine: Machine, map: ModelQueue, place: Pointer) -> int:
    return _take(map, place, remove=False)


def _take(map: ModelQueue, place: Pointer, remove: bool) -> int:
    size = map.spec.value_size
    if map.spec.type == MapType.BLOOM_FILTER:
        return 0 if place.read(size) in map.values else -ENOENT
    value = map.take(remove)
    place.write(value or bytes(size))
    return 0 if value is not None else -ENOENT


# --- time and chance -----------------------------------------------------------------------------
def _ktime_get_ns(m: Any) -> Factory:
    def ktime_get_ns():  # type: ignore
        time = m.gep(m.alloca(16), 0)
        m.c_clock_gettime(_CLOCK_MONOTONIC, time)
        return m.load_u64(time, 0) * 1_000_000_000 + m.load_u64(time, 8)

    return ktime_get_ns


def _interpret_ktime_get_ns(machine: Machine) -> int:
    return machine.clock_ns()


def next_random(prng: int) -> tuple[int, int]:
    """xorshift64*: (new state, u32); what the compiled helper does to W_PRNG."""
    prng = prng or _FIRST_SEED
    prng ^= prng >> 12
    prng = (prng ^ prng << 25) & _U64
    prng ^= prng >> 27
    return prng, (prng * _STAR & _U64) >> 32


def _get_prandom_u32(m: Any) -> Factory:
    def get_prandom_u32(run):  # type: ignore
        worker = m.load_ptr(run, state.WORKER)
        prng = m.load_u64(worker, state.W_PRNG)
        if prng == 0:
            prng = _FIRST_SEED
        prng = prng ^ m.lshr(prng, 12)
        prng = prng ^ m.mul(prng, 1 << 25)
        prng = prng ^ m.lshr(prng, 27)
        m.store_u64(worker, state.W_PRNG, prng)
        return m.lshr(m.mul(prng, _STAR), 32)

    return get_prandom_u32


def _interpret_get_prandom_u32(machine: Machine) -> int:
    return machine.random_u32()


def _get_smp_processor_id(m: Any) -> Factory:
    def get_smp_processor_id(run):  # type: ignore
        return m.load_u32(run, state.WORKER_ID)

    return get_smp_processor_id


def _interpret_get_smp_processor_id(machine: Machine) -> int:
    return machine.cpu


def _interpret_tail_call(machine: Machine, ctx: Pointer, map: ModelMap, index: int) -> int:
    """Only counts and names the target; Machine jumps there.  0 when there is nothing to call."""
    return machine.tail_call(map, index & 0xFFFFFFFF)


_KEYED = frozenset({
    MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH, MapType.LPM_TRIE})
_LOOKED_UP = _KEYED | {MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS, MapType.DEVMAP,
                       MapType.DEVMAP_HASH, MapType.XSKMAP}
_PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
_QUEUES = frozenset({MapType.QUEUE, MapType.STACK})

HELPERS = (
    Helper(1, "map_lookup_elem", (Arg.MAP, Arg.MAP_KEY), Ret.MAP_VALUE_OR_NULL,
           _interpret_lookup, map_op="lookup", maps=_LOOKED_UP, packet=True),
    Helper(2, "map_update_elem", (Arg.MAP, Arg.MAP_KEY, Arg.MAP_VALUE, Arg.ANYTHING), Ret.SCALAR,
           _interpret_update, map_op="update", maps=_KEYED, writes_map=True, packet=True),
    Helper(3, "map_delete_elem", (Arg.MAP, Arg.MAP_KEY), Ret.SCALAR,
           _interpret_delete, map_op="delete", maps=_KEYED, writes_map=True, packet=True),
    Helper(5, "ktime_get_ns", (), Ret.SCALAR, _interpret_ktime_get_ns,
           Template("ktime_get_ns", _ktime_get_ns, "i64()")),
    Helper(7, "get_prandom_u32", (), Ret.SCALAR, _interpret_get_prandom_u32,
           Template("get_prandom_u32", _get_prandom_u32, "i64(ptr)"), needs_state=True),
    Helper(8, "get_smp_processor_id", (), Ret.SCALAR, _interpret_get_smp_processor_id,
           Template("get_smp_processor_id", _get_smp_processor_id, "i64(ptr)"), needs_state=True,
           below=state.max_workers),
    Helper(TAIL_CALL, "tail_call", (Arg.CTX, Arg.MAP, Arg.ANYTHING), Ret.VOID,
           _interpret_tail_call, maps=frozenset({MapType.PROG_ARRAY})),
    Helper(87, "map_push_elem", (Arg.MAP, Arg.MAP_VALUE, Arg.ANYTHING), Ret.SCALAR,
           _interpret_push, map_op="push_elem", maps=_QUEUES | {MapType.BLOOM_FILTER},
           writes_map=True, packet=True),
    Helper(88, "map_pop_elem", (Arg.MAP, Arg.MAP_VALUE_UNINIT), Ret.SCALAR,
           _interpret_pop, map_op="pop_elem", maps=_QUEUES, writes_map=True),
    Helper(89, "map_peek_elem", (Arg.MAP, Arg.MAP_VALUE_UNINIT), Ret.SCALAR,
           _interpret_peek, map_op="peek_elem", maps=_QUEUES | {MapType.BLOOM_FILTER}),
    Helper(195, "map_lookup_percpu_elem", (Arg.MAP, Arg.MAP_KEY, Arg.ANYTHING),
           Ret.MAP_VALUE_OR_NULL, _interpret_lookup_percpu, map_op="lookup_percpu",
           maps=_PER_CPU, packet=True),
)
