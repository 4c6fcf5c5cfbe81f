"""Fields of map values that only helpers may touch: locks, timers, and their like.

They are found by the types that BTF gives the map's value (btf_parse_fields): members of structs,
of structs in them and in arrays, and global variables.  Neither a typedef nor a union is looked
into.  Where there are two of what there may be one of, the kernel knows of none.  A load or store
that overlaps one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdp_runtime import btf as types
from xdp_runtime.btf import Btf
from xdp_runtime.errors import LoadError
from xdp_runtime.object import MapSpec

SPIN_LOCK, TIMER = "bpf_spin_lock", "bpf_timer"
_FORMS = {SPIN_LOCK: (4, 4), TIMER: (16, 8)}  # size and alignment, else it is some other struct
# what programs do with these are functions of the kernel that no program has here
_WITHOUT_FUNCTIONS = frozenset({"bpf_res_spin_lock", "bpf_wq", "bpf_task_work", "bpf_list_head",
                                "bpf_rb_root", "bpf_refcount"})
_SPECIAL = frozenset(_FORMS) | _WITHOUT_FUNCTIONS
_SEVERAL = ("bpf_list_head", "bpf_rb_root")  # may be there more than once
_OBJECT_TAGS = frozenset({"kptr", "kptr_untrusted", "percpu_kptr", "uptr"})
_MAX_DEPTH, _MAX_FIELDS = 32, 64


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
        one = btf.type(btf.resolve(spec.value_type_id))
        if isinstance(one, types.Struct):
            _members(btf, one, 0, 0, found)
        elif isinstance(one, types.DataSec):
            for variable in one.vars:
                var = btf.type(variable.var)
                if isinstance(var, types.Var) and variable.size == btf.size_of(var.type):
                    _look(btf, var.type, variable.offset, 0, found)
    except LoadError:
        return ()
    names = [field.name for field in found]
    if any(names.count(name) > 1 for name in set(names) - set(_SEVERAL)):
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


def object_pointer(btf: Btf, type_id: int) -> str | None:
    """The name of a member that holds a pointer to an object of the kernel (__kptr)."""
    seen: set[int] = set()
    open_: list[tuple[str, int]] = [("", type_id)]
    while open_:
        name, number = open_.pop()
        number = btf.resolve(number)
        if number in seen:
            continue
        seen.add(number)
        one = btf.type(number)
        if isinstance(one, types.Ptr):
            tag = btf.type(one.type)
            if isinstance(tag, types.TypeTag) and tag.name in _OBJECT_TAGS:
                return name
        elif isinstance(one, types.Array):
            open_.append((name, one.type))
        elif isinstance(one, types.Struct | types.Union):
            open_ += [(member.name, member.type) for member in one.members]
        elif isinstance(one, types.DataSec):
            variables = [btf.type(variable.var) for variable in one.vars]
            open_ += [(var.name, var.type) for var in variables if isinstance(var, types.Var)]
    return None


def _members(btf: Btf, one: types.Struct, offset: int, depth: int, found: list[Field]) -> None:
    for member in one.members:
        if not member.bit_size:
            _look(btf, member.type, offset + member.bit_offset // 8, depth + 1, found)


def _look(btf: Btf, type_id: int, offset: int, depth: int, found: list[Field]) -> None:
    one, count = btf.type(type_id), 1
    while isinstance(one, types.Array) and depth <= _MAX_DEPTH:
        count *= one.count
        depth += 1
        one = btf.type(one.type)
    if depth > _MAX_DEPTH or len(found) >= _MAX_FIELDS or not isinstance(one, types.Struct):
        return
    if not _has(btf, type_id):
        return
    for number in range(min(count, _MAX_FIELDS)):
        at = offset + number * one.size
        if one.name not in _SPECIAL:
            _members(btf, one, at, depth, found)
        elif _is_special(one) and at % _FORMS.get(one.name, (0, 1))[1] == 0:
            found.append(Field(one.name, at, one.size))


def _is_special(one: types.Struct) -> bool:
    return one.name not in _FORMS or one.size == _FORMS[one.name][0]


def _has(btf: Btf, type_id: int) -> bool:
    """Is it one of these structs, or is there one in it?"""
    seen: set[int] = set()
    open_ = [type_id]
    while open_:
        number = open_.pop()
        if number in seen:
            continue
        seen.add(number)
        one = btf.type(number)
        if isinstance(one, types.Array):
            open_.append(one.type)
        elif isinstance(one, types.Struct) and one.name in _SPECIAL:
            if _is_special(one):
                return True
        elif isinstance(one, types.Struct):
            open_ += [member.type for member in one.members]
    return False
