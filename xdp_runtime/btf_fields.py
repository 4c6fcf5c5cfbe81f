"""Fields of map values that only helpers may touch: locks, timers, and their like.

They are found by the types that BTF gives the map's value (btf_parse_fields): structs are looked
into, arrays of them as well.  A load or store that overlaps one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdp_runtime import btf as types
from xdp_runtime.btf import Btf
from xdp_runtime.errors import LoadError
from xdp_runtime.object import MapSpec

SPIN_LOCK, TIMER = "bpf_spin_lock", "bpf_timer"
_SPECIAL = frozenset({
    SPIN_LOCK, TIMER, "bpf_res_spin_lock", "bpf_wq", "bpf_task_work", "bpf_list_head",
    "bpf_list_node", "bpf_rb_root", "bpf_rb_node", "bpf_refcount"})
# what programs do with these are functions of the kernel that no program has here
_WITHOUT_FUNCTIONS = frozenset({"bpf_res_spin_lock", "bpf_wq", "bpf_task_work", "bpf_list_head",
                                "bpf_rb_root", "bpf_refcount"})
_OBJECT_TAGS = frozenset({"kptr", "kptr_untrusted", "percpu_kptr", "uptr"})
_MAX_DEPTH, _MAX_FIELDS = 4, 64


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    offset: int
    size: int


def special_fields(btf: Btf | None, spec: MapSpec) -> tuple[Field, ...]:
    """In the order of their offsets; nothing without types."""
    if btf is None or not spec.value_type_id:
        return ()
    found: list[Field] = []
    try:
        _look(btf, spec.value_type_id, 0, 0, found)
    except LoadError:
        return ()
    return tuple(sorted(found, key=lambda field: field.offset))


def lock_offset(btf: Btf, spec: MapSpec) -> int:
    """Where the values' struct bpf_spin_lock is, -1 if they have none."""
    return next((f.offset for f in special_fields(btf, spec) if f.name == SPIN_LOCK), -1)


def timer_offset(btf: Btf, spec: MapSpec) -> int:
    """Where the values' struct bpf_timer is, -1 if they have none."""
    return next((f.offset for f in special_fields(btf, spec) if f.name == TIMER), -1)


def unsupported_field(btf: Btf, spec: MapSpec) -> str | None:
    """The struct in the values that only functions of the kernel could make use of."""
    return next((f.name for f in special_fields(btf, spec) if f.name in _WITHOUT_FUNCTIONS), None)


def object_pointer(btf: Btf, type_id: int, depth: int = 0) -> str | None:
    """The name of a member that holds a pointer to an object of the kernel (__kptr)."""
    one = btf.type(btf.resolve(type_id))
    if depth > _MAX_DEPTH:
        return None
    if isinstance(one, types.Array):
        return object_pointer(btf, one.type, depth + 1)
    if isinstance(one, types.Struct | types.Union):
        for member in one.members:
            target = btf.type(btf.resolve(member.type))
            if isinstance(target, types.Ptr):
                tag = btf.type(target.type)
                if isinstance(tag, types.TypeTag) and tag.name in _OBJECT_TAGS:
                    return member.name
            found = object_pointer(btf, member.type, depth + 1)
            if found is not None:
                return found
    return None


def _look(btf: Btf, type_id: int, offset: int, depth: int, found: list[Field]) -> None:
    one = btf.type(btf.resolve(type_id))
    if depth > _MAX_DEPTH or len(found) >= _MAX_FIELDS:
        return
    if isinstance(one, types.Struct):
        if one.name in _SPECIAL:
            found.append(Field(one.name, offset, one.size))
            return
        for member in one.members:
            if not member.bit_size:
                _look(btf, member.type, offset + member.bit_offset // 8, depth + 1, found)
    elif isinstance(one, types.Array):
        size = btf.size_of(one.type)
        for number in range(min(one.count, _MAX_FIELDS) if _has(btf, one.type) else 0):
            _look(btf, one.type, offset + number * size, depth + 1, found)


def _has(btf: Btf, type_id: int) -> bool:
    found: list[Field] = []
    _look(btf, type_id, 0, 1, found)
    return bool(found)
