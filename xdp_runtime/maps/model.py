"""Maps as plain dicts and lists: the living definition of what a map operation does.

A value is a `bytearray` that keeps its identity as long as its element lives, so a pointer into it
stays good; what is deleted or replaced stays readable for whoever still points at it, as under RCU.
Error numbers and the order of the checks are those of kernel/bpf/arraymap.c and hashtab.c as a
program sees them.  (The syscall looks at BPF_F_LOCK before anything else.)

What the kernel leaves open is decided here: LRU evicts exactly the least recently used element, an
update counts as use, and an update that fails evicts nothing; `items` is in order of insertion.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.errors import LoadError
from xdp_runtime.maps.family import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_NOEXIST,
    E2BIG,
    EAGAIN,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    EOPNOTSUPP,
    EOVERFLOW,
)
from xdp_runtime.maps.user_ring_model import ModelUserRing
from xdp_runtime.object import MapSpec, MapType

QUEUE_MAX = 16384  # packets, of a CPUMAP's entry


class ModelMap(Protocol):
    """`cpu` matters only to per-CPU maps.  Keys and values have exactly the sizes of `spec`."""

    spec: MapSpec

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        """The element's memory, as bpf_map_lookup_elem gives it to a program."""

    def peek(self, key: bytes, cpu: int = 0) -> bytearray | None:
        """The same from user space, where it is no use of the element."""

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        """0 or -errno"""

    def delete(self, key: bytes) -> int:
        """0 or -errno"""

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]: ...


def _unlocked(spec: MapSpec, value: bytes) -> bytes:
    """The value with its lock free, and without a timer."""
    at, timer_at = spec.lock_at, spec.timer_at
    if timer_at >= 0:
        value = value[:timer_at] + bytes(16) + value[timer_at + 16:]
    return value if at < 0 else value[:at] + bytes(4) + value[at + 4:]


def _shown(spec: MapSpec, cell: bytearray) -> bytes:
    """To user space."""
    return _unlocked(spec, bytes(cell)) if spec.timer_at >= 0 else bytes(cell)


class ModelArray:
    """ARRAY and PERCPU_ARRAY.  An element always exists; a CPU's copy is made when first used."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self._per_cpu = spec.type == MapType.PERCPU_ARRAY
        self._cells: dict[tuple[int, int], bytearray] = {}

    def _cell(self, index: int, cpu: int) -> bytearray:
        at = (cpu if self._per_cpu else 0, index)
        if at not in self._cells:
            initial = self.spec.initial if index == 0 else b""
            self._cells[at] = bytearray(initial.ljust(self.spec.value_size, b"\0"))
        return self._cells[at]

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        index = int.from_bytes(key, "little")
        return self._cell(index, cpu) if index < self.spec.max_entries else None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        index = int.from_bytes(key, "little")
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            return -EINVAL
        if index >= self.spec.max_entries:
            return -E2BIG
        if flags & BPF_NOEXIST:
            return -EEXIST
        if flags & BPF_F_LOCK and self.spec.lock_at < 0:
            return -EINVAL
        self._cell(index, cpu)[:] = _unlocked(self.spec, value)
        return 0

    def delete(self, key: bytes) -> int:
        return -EINVAL

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        for index in range(self.spec.max_entries):
            yield index.to_bytes(4, "little"), _shown(self.spec, self._cell(index, cpu))


class ModelHash:
    """HASH: an update replaces the element, so the old value's memory no longer changes."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self._cells: dict[bytes, bytearray] = {}

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return self._cells.get(bytes(key))

    def peek(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return self._cells.get(bytes(key))

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        key = bytes(key)
        if self.spec.lock_at >= 0 and flags & BPF_F_LOCK:
            flags &= ~BPF_F_LOCK
            if key in self._cells and flags in (0, BPF_EXIST):
                cell, at = self._cells[key], self.spec.timer_at
                kept = bytes(cell[at : at + 16])
                cell[:] = _unlocked(self.spec, value)
                if at >= 0:
                    cell[at : at + 16] = kept
                return 0
        value = _unlocked(self.spec, value)
        if error := self._check(key, flags):
            return error
        if key not in self._cells and len(self._cells) >= self.spec.max_entries:
            return -E2BIG
        self._cells[key] = bytearray(value)
        return 0

    def _check(self, key: bytes, flags: int) -> int:
        if flags > BPF_EXIST:
            return -EINVAL
        if flags == BPF_NOEXIST and key in self._cells:
            return -EEXIST
        if flags == BPF_EXIST and key not in self._cells:
            return -ENOENT
        return 0

    def delete(self, key: bytes) -> int:
        return 0 if self._cells.pop(bytes(key), None) is not None else -ENOENT

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        for key, cell in self._cells.items():
            yield key, _shown(self.spec, cell)


class ModelLruHash(ModelHash):
    """LRU_HASH: `_cells` is in order of use, the oldest first."""

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        key = bytes(key)
        cell = self._cells.pop(key, None)
        if cell is not None:
            self._cells[key] = cell
        return cell

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        key = bytes(key)
        if error := self._check(key, flags):
            return error
        self._cells.pop(key, None)
        if len(self._cells) >= self.spec.max_entries:
            del self._cells[next(iter(self._cells))]
        self._cells[key] = bytearray(_unlocked(self.spec, value))
        return 0


class ModelPerCpuHash(ModelHash):
    """PERCPU_HASH: a value a CPU; an update of what exists writes this CPU's in place."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec)
        self._values: dict[bytes, dict[int, bytearray]] = {}

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return self.peek(key, cpu)

    def peek(self, key: bytes, cpu: int = 0) -> bytearray | None:
        values = self._values.get(bytes(key))
        if values is None:
            return None
        return values.setdefault(cpu, bytearray(self.spec.value_size))

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        if error := self._admit(bytes(key), flags):
            return error
        values = self._values.setdefault(bytes(key), {})
        values.setdefault(cpu, bytearray(self.spec.value_size))[:] = value
        return 0

    def update_all(self, key: bytes, values: list[bytes], flags: int = 0) -> int:
        """User space's update: the values of all CPUs."""
        if error := self._admit(bytes(key), flags):
            return error
        cells = self._values.setdefault(bytes(key), {})
        for cpu, value in enumerate(values):
            cells.setdefault(cpu, bytearray(self.spec.value_size))[:] = value
        return 0

    def _admit(self, key: bytes, flags: int) -> int:
        if flags > BPF_EXIST:
            return -EINVAL
        if key in self._values:
            return -EEXIST if flags == BPF_NOEXIST else 0
        if flags == BPF_EXIST:
            return -ENOENT
        return -E2BIG if len(self._values) >= self.spec.max_entries else 0

    def delete(self, key: bytes) -> int:
        return 0 if self._values.pop(bytes(key), None) is not None else -ENOENT

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        for key in self._values:
            yield key, bytes(self.peek(key, cpu) or b"")


class ModelLruPerCpuHash(ModelPerCpuHash):
    """LRU_PERCPU_HASH: `_values` is in order of use, the oldest first."""

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        if bytes(key) in self._values:
            self._values[bytes(key)] = self._values.pop(bytes(key))
        return self.peek(key, cpu)

    def _admit(self, key: bytes, flags: int) -> int:
        error = super()._admit(key, flags)
        if error == -E2BIG:
            del self._values[next(iter(self._values))]
            return 0
        if not error and key in self._values:
            self._values[key] = self._values.pop(key)
        return error


class ModelLpmTrie:
    """LPM_TRIE: `items` gives longer prefixes before those they lie in, else in order of bits."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self._cells: dict[str, tuple[bytes, bytearray]] = {}  # by the prefix as binary digits

    def _digits(self, key: bytes) -> str | None:
        length, data = int.from_bytes(key[:4], "little"), key[4:]
        if length > 8 * len(data):
            return None
        return "".join(f"{byte:08b}" for byte in data)[:length]

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        digits = self._digits(key)
        if digits is None:
            return None
        for length in range(len(digits), -1, -1):
            if digits[:length] in self._cells:
                return self._cells[digits[:length]][1]
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        digits = self._digits(key)
        if flags > BPF_EXIST or digits is None:
            return -EINVAL
        if digits in self._cells:
            if flags == BPF_NOEXIST:
                return -EEXIST
        elif flags == BPF_EXIST:
            return -ENOENT
        elif len(self._cells) == self.spec.max_entries:
            return -ENOSPC
        self._cells[digits] = bytes(key), bytearray(value)
        return 0

    def delete(self, key: bytes) -> int:
        digits = self._digits(key)
        if digits is None:
            return -EINVAL
        return 0 if self._cells.pop(digits, None) is not None else -ENOENT

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        for digits in sorted(self._cells, key=lambda digits: digits + "2"):
            key, cell = self._cells[digits]
            yield key, bytes(cell)


class ModelQueue:
    """QUEUE and STACK: `values` with the oldest first."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.values: list[bytes] = []

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return self.push(value, flags)

    def delete(self, key: bytes) -> int:
        return -EINVAL

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    def push(self, value: bytes, flags: int = 0) -> int:
        if flags not in (0, BPF_EXIST):
            return -EINVAL
        if len(self.values) == self.spec.max_entries:
            if flags != BPF_EXIST:
                return -E2BIG
            del self.values[0]
        self.values.append(bytes(value))
        return 0

    def take(self, remove: bool) -> bytes | None:
        """The next value, or None."""
        if not self.values:
            return None
        at = -1 if self.spec.type == MapType.STACK else 0
        return self.values.pop(at) if remove else self.values[at]


class ModelBloom(ModelQueue):
    """BLOOM_FILTER that never errs."""

    def push(self, value: bytes, flags: int = 0) -> int:
        if flags:
            return -EINVAL
        self.values.append(bytes(value))
        return 0


class ModelRing:
    """RINGBUF: `pending` are the records in order, committed or not, `consume` takes them out.

    The positions are the kernel's: a record takes 8 bytes more than its size rounded up to 8."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.produced = self.consumed = 0
        self.pending: list[tuple[bytearray, bool | None]] = []  # with: keep it?  None: reserved

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return -EOPNOTSUPP

    def delete(self, key: bytes) -> int:
        return -EOPNOTSUPP

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    def reserve(self, size: int) -> bytearray | None:
        taken = (self.produced + _record_bytes(size) - self.consumed) & 0xFFFF_FFFF_FFFF_FFFF
        if size >= self.spec.max_entries or taken >= self.spec.max_entries:
            return None
        record = bytearray(size)
        self.pending.append((record, None))
        self.produced += _record_bytes(size)
        return record

    def commit(self, record: bytearray, keep: bool) -> None:
        """Nothing happens to what is of another ring."""
        self.pending = [(one, keep) if one is record else (one, was) for one, was in self.pending]

    def output(self, data: bytes, flags: int = 0) -> int:
        if flags & ~3:
            return -EINVAL
        record = self.reserve(len(data))
        if record is None:
            return -EAGAIN
        record[:] = data
        self.commit(record, True)
        return 0

    def query(self, what: int) -> int:
        answers = (self.produced - self.consumed, self.spec.max_entries, self.consumed,
                   self.produced)
        return answers[what] if what < len(answers) else 0

    def consume(self) -> list[bytes]:
        out = []
        while self.pending and self.pending[0][1] is not None:
            record, keep = self.pending.pop(0)
            self.consumed += _record_bytes(len(record))
            if keep:
                out.append(bytes(record))
        return out


def _record_bytes(size: int) -> int:
    return (size + 7) // 8 * 8 + 8


class ModelEvents(ModelRing):
    """PERF_EVENT_ARRAY: what all CPUs have written, in order."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec)
        self.records: list[bytes] = []


class ModelStacks(ModelRing):
    """STACK_TRACE: always empty."""

    def delete(self, key: bytes) -> int:
        buckets = 1 << (self.spec.max_entries - 1).bit_length()
        return -ENOENT if int.from_bytes(key, "little") < buckets else -E2BIG


class ModelDevMap(ModelHash):
    """DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP: targets of bpf_redirect_map by number.

    `allowed` are the programs that entries may name, of an XSKMAP the rings (dev.py)."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec)
        self.allowed: set[int] = set()

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        kind, index = self.spec.type, int.from_bytes(key, "little")
        first, program = int.from_bytes(value[:4], "little"), int.from_bytes(value[4:], "little")
        if flags > BPF_EXIST or (kind == MapType.DEVMAP_HASH and not first):
            return -EINVAL
        if kind != MapType.DEVMAP_HASH and index >= self.spec.max_entries:
            return -E2BIG
        if kind == MapType.XSKMAP:
            if not self.allowed:
                return -EOPNOTSUPP
            if error := self._check(bytes(key), flags):
                return error
            if first not in self.allowed:
                return -EINVAL
            return super().update(key, value)
        if kind != MapType.DEVMAP_HASH and flags == BPF_NOEXIST:
            return -EEXIST
        if kind == MapType.CPUMAP and first > QUEUE_MAX:
            return -EOVERFLOW
        if program and program not in self.allowed:
            return -EINVAL
        if not first:
            if program and kind == MapType.DEVMAP:
                return -EINVAL
            self._cells.pop(bytes(key), None)
            return 0
        return super().update(key, value, flags & BPF_NOEXIST)

    def delete(self, key: bytes) -> int:
        if self.spec.type == MapType.DEVMAP_HASH:
            return super().delete(key)
        self._cells.pop(bytes(key), None)
        return -EINVAL if int.from_bytes(key, "little") >= self.spec.max_entries else 0

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        cell = super().lookup(key, cpu)
        if cell is not None and self.spec.type == MapType.XSKMAP:  # a struct bpf_xdp_sock
            return bytearray(key)
        return cell

    def target(self, index: int) -> tuple[int, int]:
        """The two words of an entry: interface index, queue length or ring; and program."""
        cell = self.peek((index & 0xFFFFFFFF).to_bytes(4, "little"))
        return (int.from_bytes(cell[:4], "little"), int.from_bytes(cell[4:], "little")) if (
            cell) else (0, 0)


class ModelOfMaps(ModelHash):
    """ARRAY_OF_MAPS and HASH_OF_MAPS: `inner` maps by key."""

    def __init__(self, spec: MapSpec) -> None:
        super().__init__(spec)
        self.inner: dict[bytes, ModelMap] = {}

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        raise TypeError(f"map {self.spec.name} has maps, not values")

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return -EINVAL


class ModelProgArray:
    """PROG_ARRAY: names of programs; a program cannot look them up, only tail-call them."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self._names: dict[int, str] = dict(spec.slots)

    def program(self, index: int) -> str | None:
        return self._names.get(index)

    def assign(self, index: int, name: str) -> int:
        """0 or -errno, as user space's update"""
        if index >= self.spec.max_entries:
            return -E2BIG
        self._names[index] = name
        return 0

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return -EINVAL

    def delete(self, key: bytes) -> int:
        index = int.from_bytes(key, "little")
        if index >= self.spec.max_entries:
            return -E2BIG
        return 0 if self._names.pop(index, None) is not None else -ENOENT

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        for index, name in sorted(self._names.items()):
            yield index.to_bytes(4, "little"), name.encode()


class ModelArena:
    """ARENA: the pages that are there, by number; addresses by their lower halves."""

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        self.pages: dict[int, bytearray] = {}
        self._start = start_of(spec) & 0xFFFFFFFF
        for number in range((len(spec.initial) + PAGE_BYTES - 1) // PAGE_BYTES):
            part = spec.initial[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            self.pages[number] = bytearray(part.ljust(PAGE_BYTES, b"\0"))

    def lookup(self, key: bytes, cpu: int = 0) -> bytearray | None:
        return None

    peek = lookup

    def update(self, key: bytes, value: bytes, flags: int = 0, cpu: int = 0) -> int:
        return -EOPNOTSUPP

    def delete(self, key: bytes) -> int:
        return -EOPNOTSUPP

    def items(self, cpu: int = 0) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    def make(self, first: int, count: int) -> None:
        """User space maps these pages."""
        for number in range(first, first + count):
            self.pages.setdefault(number, bytearray(PAGE_BYTES))

    def _parts(self, address: int, size: int) -> list[tuple[bytearray, int]] | None:
        """(page, offset in it) of each byte; None if one is not there."""
        places = [divmod(address - self._start + n, PAGE_BYTES) for n in range(size)]
        if any(number not in self.pages for number, _ in places):
            return None
        return [(self.pages[number], at) for number, at in places]

    def read(self, address: int, size: int) -> bytes | None:
        parts = self._parts(address, size)
        return None if parts is None else bytes(page[at] for page, at in parts)

    def write(self, address: int, content: bytes) -> None:
        for (page, at), byte in zip(self._parts(address, len(content)) or (), content,
                                    strict=False):
            page[at] = byte


def make_model(spec: MapSpec) -> ModelMap:
    """An empty map (a globals map has its initial value).  Raises LoadError for other types."""
    match spec.type:
        case MapType.ARRAY | MapType.PERCPU_ARRAY:
            return ModelArray(spec)
        case MapType.HASH:
            return ModelHash(spec)
        case MapType.LRU_HASH:
            return ModelLruHash(spec)
        case MapType.QUEUE | MapType.STACK:
            return ModelQueue(spec)
        case MapType.BLOOM_FILTER:
            return ModelBloom(spec)
        case MapType.DEVMAP | MapType.DEVMAP_HASH | MapType.CPUMAP | MapType.XSKMAP:
            return ModelDevMap(spec)
        case MapType.ARRAY_OF_MAPS | MapType.HASH_OF_MAPS:
            return ModelOfMaps(spec)
        case MapType.RINGBUF:
            return ModelRing(spec)
        case MapType.PERF_EVENT_ARRAY:
            return ModelEvents(spec)
        case MapType.LPM_TRIE:
            return ModelLpmTrie(spec)
        case MapType.PERCPU_HASH:
            return ModelPerCpuHash(spec)
        case MapType.LRU_PERCPU_HASH:
            return ModelLruPerCpuHash(spec)
        case MapType.PROG_ARRAY:
            return ModelProgArray(spec)
        case MapType.STACK_TRACE:
            return ModelStacks(spec)
        case MapType.USER_RINGBUF:
            return ModelUserRing(spec)
        case MapType.ARENA:
            return ModelArena(spec)
        case _:
            known = {int(kind): kind.name for kind in MapType}
            kind = known.get(spec.type, f"number {spec.type}")
            raise LoadError(f"map {spec.name}", f"there is no reference model of type {kind}")
