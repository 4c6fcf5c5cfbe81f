"""Map: shared memory in a family's layout, and its view for Python.

    m = Map.create(spec, workers=2, directory=Path("/run/xdpu/lb"))
    compile_operations(m)            # or the program that uses it binds them
    m[key] = value
    for key, value in m.items(): ...

Memory is what programs and other processes share; the operations on it are compiled code, bound by
whoever compiled them.  Keys and values are bytes of exactly the map's sizes; the value of a per-CPU
map is a list, one a worker.  Refusals are OSErrors with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from xdp_runtime import arena
from xdp_runtime.errors import LoadError
from xdp_runtime.maps import (
    family_of,
    layout,
    limits,
    of_maps,
    pool,
    ringbuf,
    type_name,
    user_ringbuf,
)
from xdp_runtime.maps.family import (
    BPF_ANY,
    BPF_F_LOCK,
    ENOENT,
    ENOSPC,
    Family,
    Mended,
    round_up,
)
from xdp_runtime.maps.memory import TEMPORARY, Memory
from xdp_runtime.maps.typed import BtfCodec, Codec, TypedMap
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType

if TYPE_CHECKING:
    from xdp_runtime.maps.batch import Batch

_SCANNED = 256  # keys at a time
Value = bytes | list[bytes]  # a list for per-CPU maps

BTF_NAME = ".btf"  # beside the maps of a program: the object's types

CONSTANT = {GlobalKind.RODATA, GlobalKind.KCONFIG}  # folded into programs, so that they are frozen
_ARRAYS = {MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.PROG_ARRAY, MapType.ARRAY_OF_MAPS,
           MapType.DEVMAP, MapType.CPUMAP, MapType.XSKMAP}


class Map:
    """Made by `create` or `open`; not usable after `close`."""

    def __init__(self, header: layout.Header, memory: Memory, owned: bool) -> None:
        self.spec: MapSpec = header.spec
        self.workers = header.workers
        self.family: Family = family_of(header.spec)
        self.regions = header.regions
        self.codec: Codec | None = None
        self._bind_later: Callable[[], Any] | None = None
        self._memory: Memory | None = memory
        self._owned = owned
        self._operations: Mapping[str, Callable[..., Any]] = {}
        self._event_fd = -1
        self.batches: Mapping[str, Callable[..., Any]] = {}  # compiled when first used
        self.compile_batches: Callable[[], Any] | None = None  # bound with the operations
        self.on_inner: Callable[[Map], None] = lambda inner: None  # before a program may see it
        self.readers: list[Callable[[], bool]] = []  # wait until who may look at it is in no batch
        self._inner: dict[int, Map] = {}  # inner maps by the number of their descriptor
        self._kept: dict[int, memoryview] = {}  # keeps these mapped, should they be closed
        placed = {region.name: region.offset for region in header.regions}
        for region in self.family.regions(header.spec, header.workers):
            for offset, size_bytes in region.mirrors:
                start = placed[region.name] + offset
                memory.mirror(start, size_bytes)
                if owned:  # a ring's pages are all used, and a fault takes longer than a record
                    memory.populate(start, 2 * size_bytes)

    @classmethod
    def create(cls, spec: MapSpec, workers: int, directory: Path | None = None,
               seed: int | None = None) -> Map:
        """A fresh map: the file `directory`/<name>, or nameless memory.

        `seed` (128 bits) is that of the hash, random if not given.  Raises LoadError, OutOfMemory.
        """
        what = f"map {spec.name}"
        if workers < 1:
            raise ValueError(f"{what}: {workers} workers")
        if refused := limits.refusal(spec):
            _, why = refused
            raise LoadError(what, why, why.mend if isinstance(why, Mended)
                            else "the kernel refuses such a map, too")
        if directory is not None and (
                "/" in spec.name or spec.name in ("", ".", "..", BTF_NAME)
                or spec.name.startswith(TEMPORARY)):
            raise LoadError(what, "its name cannot be that of a file")
        if seed is None:
            seed = int.from_bytes(os.urandom(16), "little")
        regions, size_bytes = layout.plan(spec, workers)
        header = layout.Header(spec, workers, seed, os.getpid(), size_bytes, regions)
        page = layout.encode(header)
        memory = Memory.create(spec.name, size_bytes, directory)
        made = cls(header, memory, owned=True)
        try:
            memory.map[:len(page)] = page
            views = {region.name: made.memory(region.name) for region in regions}
            if made.has_pools:
                pool.prepare(views["head"], workers, os.getpid())
            made.family.initialise(spec, views, seed)
            memory.map[layout.FROZEN] = spec.global_kind in CONSTANT
            for view in views.values():
                view.release()
            if directory is not None:
                memory.publish(directory / spec.name, what)
        except BaseException:
            made.close()
            raise
        return made

    @classmethod
    def open(cls, path: Path) -> Map:
        """A map that another process created.  Raises LoadError, OutOfMemory."""
        memory, page = Memory.open(path)
        try:
            opened = cls(layout.decode(page, len(memory.map), str(path)), memory, owned=False)
            opened.codec = _codec_beside(path, opened.spec)
            return opened
        except BaseException:
            memory.close()
            raise

    # --- memory ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        return self._mapped.path if self._owned else None

    @property
    def id(self) -> int:
        """The inode of its file, 0 without one."""
        path = self._mapped.path
        return path.stat().st_ino if path is not None else 0

    def moved(self, path: Path | None) -> None:
        """Its file has another name now, or None: its name is another map's."""
        self._mapped.path = path

    @property
    def _mapped(self) -> Memory:
        if self._memory is None:
            raise ValueError(f"map {self.spec.name} is closed")
        return self._memory

    def symbols(self) -> dict[str, int]:
        """Where the regions are in this process."""
        base = self._mapped.address
        return {region.name: base + region.offset for region in self.regions}

    @property
    def has_pools(self) -> bool:
        """Are elements freed, so that workers must say where their batches end (pool.py)?"""
        return bool(getattr(self.family, "pools", False))

    @property
    def max_entries(self) -> int:
        """As it was made: rounded up where workers have shares of it (share.py)."""
        made = getattr(self.family, "made", None)
        return int((made(self.spec, self.workers) if made else self.spec).max_entries)

    @property
    def writer(self) -> int:
        """The worker's number of who writes from outside: behind theirs where each has a line in
        the map, so that no batch of theirs is taken for his."""
        return self.workers if self.has_pools else 0

    def line(self, worker: int) -> tuple[int, int]:
        """Addresses of a worker's line and of the epoch, of a map that has pools."""
        head = self.symbols()["head"]
        return head + pool.LINES + worker * pool.LINE_BYTES, head + pool.EPOCH

    @property
    def reused_early(self) -> int:
        """Elements reused while the batch of the worker that reused them might still hold them."""
        return pool.total(self.memory("head"), pool.EARLY)

    def memory(self, region: str) -> memoryview:
        """A region's bytes, or those of the header, "".  A view that is kept keeps it mapped."""
        if not region:
            return memoryview(self._mapped.map)[:layout.PAGE]
        for one in self.regions:
            if one.name == region:
                return memoryview(self._mapped.map)[one.offset:one.offset + one.size_bytes]
        raise KeyError(region)

    @property
    def data(self) -> memoryview:
        """The values of an ARRAY as they lie in memory, `stride` apart: globals are one value."""
        if self.spec.type != MapType.ARRAY:
            raise TypeError(f"map {self.spec.name} is {type_name(self.spec.type)}, not an ARRAY")
        view = self.memory("values")
        return view[:self.spec.value_size] if self.spec.max_entries == 1 else view

    def close(self) -> None:
        """Unmap; the process that created a file also removes it."""
        if self._event_fd >= 0:
            self._tell_event(0)
            os.close(self._event_fd)
            self._event_fd = -1
        memory, self._memory, self._operations = self._memory, None, {}
        self.batches = {}
        self._kept.clear()
        if memory is not None:
            if self._owned:
                memory.unlink()
            memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def frozen(self) -> bool:
        return self._mapped.map[layout.FROZEN] != 0

    def freeze(self) -> None:
        """From now on user space cannot write; programs still can.

        Raises OSError: ENOTSUPP for values with a lock or a timer, EPERM if it cannot be written
        anyway, EBUSY while someone has it mapped to write."""
        if self.spec.lock_at >= 0 or self.spec.timer_at >= 0:
            raise OSError(limits.ENOTSUPP, "its values have a lock or a timer", self.spec.name)
        self.check_writable()
        with self._mapped.alone(self.spec.name):
            self._mapped.map[layout.FROZEN] = 1

    @contextmanager
    def mmap(self, write: bool = False) -> Iterator[memoryview]:
        """The values of an ARRAY of BPF_F_MMAPABLE as they lie in memory, 8-byte aligned; for
        numpy.frombuffer.  While a view to write exists the map cannot be frozen.

        Raises OSError as mmap(2) of the kernel's map: EINVAL without the flag or of BPF_F_RDONLY,
        EACCES of BPF_F_WRONLY and to write what is read-only, EPERM to write to a frozen one."""
        spec = self.spec
        if spec.type != MapType.ARRAY or spec.lock_at >= 0 or spec.timer_at >= 0:
            raise OSError(limits.ENOTSUPP, "such a map cannot be mapped", spec.name)
        if spec.flags & MapFlag.WRONLY or (write and spec.flags & MapFlag.RDONLY):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), spec.name)
        if write and self.frozen:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), spec.name)
        if write and spec.flags & MapFlag.RDONLY_PROG:
            raise OSError(errno.EACCES, "programs may only read it", spec.name)
        if not spec.flags & MapFlag.MMAPABLE or spec.flags & MapFlag.RDONLY:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), spec.name)
        with self._mapped.shared() if write else nullcontext():
            if write and self.frozen:
                raise OSError(errno.EPERM, os.strerror(errno.EPERM), spec.name)
            view = self.memory("values")[:round_up(spec.value_size, 8) * spec.max_entries]
            try:
                yield view if write else view.toreadonly()
            finally:
                with suppress(BufferError):  # an array made of it keeps it as long as it lives
                    view.release()

    @contextmanager
    def pages(self, first: int = 0, count: int | None = None) -> Iterator[memoryview]:
        """Pages of an ARENA to read and write, made if they are not there (mmap(2) with
        MAP_POPULATE): from then on programs find them.

        They lie where the program's pointers, cast to user space, point: at map_extra, or an
        address of ours without one.  Raises OSError: EPERM for a frozen map, EFAULT where only
        programs may make pages (BPF_F_SEGV_ON_FAULT), EINVAL beyond its end, EBUSY if something
        else lies at these addresses in this process."""
        spec = self.spec
        if spec.type != MapType.ARENA:
            raise TypeError(f"map {spec.name} is {type_name(spec.type)}, not an ARENA")
        count = spec.max_entries - first if count is None else count
        if first < 0 or count <= 0 or first + count > spec.max_entries:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), spec.name)
        if spec.flags & MapFlag.SEGV_ON_FAULT:
            raise OSError(errno.EFAULT, "only programs may make its pages", spec.name)
        with self._mapped.shared():
            self.check_writable()
            placed = next(one for one in self.regions if one.name == "pages")
            whole = self._mapped.alias(placed.offset, placed.size_bytes, arena.start_of(spec))
            self.memory("present")[first:first + count] = b"\1" * count
            view = whole[arena.PAGE_BYTES * first:arena.PAGE_BYTES * (first + count)]
            try:
                yield view
            finally:
                with suppress(BufferError):  # an array made of it keeps it as long as it lives
                    view.release()

    def check_writable(self) -> None:
        """Raises PermissionError for a map that is frozen, or of BPF_F_RDONLY."""
        if self.frozen or self.spec.flags & MapFlag.RDONLY:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.spec.name)

    def check_readable(self) -> None:
        """Raises PermissionError for a map of BPF_F_WRONLY."""
        if self.spec.flags & MapFlag.WRONLY:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.spec.name)

    # --- operations -----------------------------------------------------------------------------

    def bind(self, operations: Mapping[str, Callable[..., Any]]) -> None:
        """Take the compiled operations: functions by name, first parameter the worker."""
        self._operations = operations

    def bind_later(self, compile_operations: Callable[[], Any]) -> None:
        """What to call, once, before the first operation: it binds."""
        self._bind_later = compile_operations

    def _bind_now(self) -> None:
        if self._bind_later is not None:
            compile_operations, self._bind_later = self._bind_later, None
            compile_operations()

    def compiled_batches(self) -> Mapping[str, Callable[..., Any]]:
        """Loops over its operations, by name; for batch.py."""
        self._bind_now()
        if not self.batches:
            if self.compile_batches is None:
                raise RuntimeError(f"map {self.spec.name}: no compiled operations are bound")
            self.compile_batches()
        return self.batches

    def _operation(self, name: str) -> Callable[..., Any]:
        self._bind_now()
        if name not in self.family.operations:
            raise limits.absent(self.spec, name)
        try:
            return self._operations[name]
        except KeyError:
            self._mapped  # noqa: B018  # closed?
            raise RuntimeError(f"map {self.spec.name}: no compiled {name} is bound") from None

    @property
    def _cpus(self) -> range:
        return range(self.workers if self.family.per_cpu else 1)

    def lookup(self, key: bytes, flags: int = 0) -> Value | None:
        """The value of a key, None if there is none.  With BPF_F_LOCK, read under its lock."""
        self._check_key(key)
        self._check_flags(flags)
        self.check_readable()
        self._check_lock(flags)
        size = self.spec.value_size
        if flags:
            locked = ctypes.create_string_buffer(size)
            return None if self._operation("read_locked")(0, key, locked) else locked.raw
        if "read" in self.family.operations:
            padded = round_up(size, 8) if self.family.per_cpu else size
            out = ctypes.create_string_buffer(padded * len(self._cpus))
            if self._operation("read")(0, key, out):
                return None
            if not self.family.per_cpu:
                return out.raw
            return [out.raw[at:at + size] for at in range(0, len(out.raw), padded)]
        values = []
        for worker in self._cpus:
            address = self._operation("peek")(worker, key)
            if not address:
                return None
            values.append(ctypes.string_at(address, size))
        return values if self.family.per_cpu else values[0]

    def update(self, key: bytes, value: Value, flags: int = BPF_ANY) -> None:
        """Insert or replace; `flags` is BPF_ANY, BPF_NOEXIST or BPF_EXIST."""
        self._check_key(key)
        values = value if isinstance(value, list) else [value]
        if len(values) != len(self._cpus):
            raise ValueError(f"map {self.spec.name}: {len(self._cpus)} values, got {len(values)}")
        for one in values:
            if len(one) != self.spec.value_size:
                raise ValueError(f"map {self.spec.name}: a value has {self.spec.value_size} "
                                 f"bytes, got {len(one)}")
        self.check_writable()
        if self.spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
            raise OSError(errno.EINVAL, "its values are maps, see set_inner", self.spec.name)
        self._check_lock(flags)
        if "update_all" in self.family.operations:
            padded = b"".join(one.ljust(round_up(len(one), 8), b"\0") for one in values)
            self._raise(self._operation("update_all")(self.writer, key, padded, flags))
            return
        operation = self._operation("update")
        if not self.family.per_cpu:
            self._raise(operation(self.writer, key, values[0], flags))
            return
        for worker, one in enumerate(values):  # an array's: each worker's copy is its own
            self._raise(operation(worker, key, one, flags))

    def delete(self, key: bytes) -> None:
        """Remove a key; FileNotFoundError (ENOENT) if it is not there."""
        self._check_key(key)
        self.check_writable()
        self._raise(self._operation("delete")(self.writer, key))

    def lookup_and_delete(self, key: bytes, flags: int = 0) -> Value | None:
        """The value of a key, taking it out in one step; None if there is none.  With BPF_F_LOCK,
        read under its lock.

        Raises OSError (ENOTSUPP, as the kernel) for a map that is not a hash."""
        self._check_key(key)
        self._check_flags(flags)
        self.check_writable()
        self.check_readable()
        self._check_lock(flags)
        size = self.spec.value_size
        padded = round_up(size, 8) if self.family.per_cpu else size
        out = ctypes.create_string_buffer(padded * len(self._cpus))
        if self._operation("take")(self.writer, key, out):
            return None
        if not self.family.per_cpu:
            return out.raw
        return [out.raw[at:at + size] for at in range(0, len(out.raw), padded)]

    def next_key(self, key: bytes | None = None) -> bytes | None:
        """None starts, None ends; a key that is not there starts again, so that whoever goes from
        key to key while others delete may see keys again, or never arrive: see `keys`."""
        self.check_readable()
        if key is not None:
            self._check_key(key)
        out = ctypes.create_string_buffer(self.spec.key_size)
        status = self._operation("next_key")(0, key, out)
        if status == -ENOENT:
            return None
        self._raise(status)
        return out.raw

    def keys(self) -> Iterator[bytes]:
        """Keys, each once and all that stay, whatever others do meanwhile; what comes or goes may
        be among them or not.  Deleting them is fine."""
        self.check_readable()
        if "scan" in self.family.operations:
            yield from self._scan()
            return
        step = self._operation("after" if "after" in self.family.operations else "next_key")
        key, after = None, ctypes.create_string_buffer(self.spec.key_size)
        while (status := step(0, key, after)) == 0:
            key = after.raw
            yield key
        if status != -ENOENT:
            self._raise(status)

    def _scan(self) -> Iterator[bytes]:
        """The keys of a hash (scan.py)."""
        size, room, place = self.spec.key_size, _SCANNED, ctypes.c_uint64()
        scan = self._operation("scan")
        while True:
            out = ctypes.create_string_buffer(size * room)
            count = scan(0, ctypes.addressof(place), room, out)
            if count == -ENOSPC:
                room *= 2
                continue
            if count == 0:
                return
            yield from (out.raw[at:at + size] for at in range(0, size * count, size))

    def items(self) -> Iterator[tuple[bytes, Value]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def values(self) -> Iterator[Value]:
        return (value for _, value in self.items())

    def get(self, key: bytes, default: Any = None) -> Any:
        value = self.lookup(key)
        return default if value is None else value

    # --- maps of maps ---------------------------------------------------------------------------

    def set_inner(self, key: bytes, inner: Map, flags: int = BPF_ANY) -> None:
        """Put a map where programs find it by `key`; it is kept as long as it may be there.

        Only in the process whose workers use it.  Raises OSError: EINVAL where its type, sizes or
        flags are not those of the inner definition, and as `update`; EBUSY if so many others were
        put in and taken out while a worker is in its batch that their places may be in use."""
        self._check_key(key)
        self.check_writable()
        self._check_lock(flags)
        if self.spec.type == MapType.ARRAY_OF_MAPS:  # these are asked first, as by the kernel
            if flags:
                raise OSError(errno.EINVAL, f"flags {flags:#x}, must be 0", self.spec.name)
            if int.from_bytes(key, "little") >= self.spec.max_entries:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), self.spec.name)
        definition = self.spec.inner
        if definition is None or not of_maps.fits(definition, inner.spec) or (
                inner.workers != self.workers):
            raise OSError(errno.EINVAL, "is not a map of the inner definition", inner.spec.name)
        self.on_inner(inner)
        number = self._describe(inner).to_bytes(4, "little")
        self._raise(self._operation("update")(self.writer, key, number, flags))

    def inner_id(self, value: bytes) -> int:
        """The id of the map that a value stands for; asked from any process."""
        assert isinstance(self.family, of_maps.ArrayOfMapsFamily | of_maps.HashOfMapsFamily)
        region, start = self.family.descriptors(self.spec)
        end = start + (int.from_bytes(value, "little") + 1) * of_maps.DESCRIPTOR_BYTES
        return int.from_bytes(self.memory(region)[end - 8:end], "little")

    def inner_maps(self) -> list[Map]:
        """Maps that are in it, or were and may still be looked at."""
        return list(self._inner.values())

    def inner(self, key: bytes) -> Map | None:
        """The map that set_inner put there."""
        value = self.lookup(key)
        return self._inner.get(int.from_bytes(value, "little")) if isinstance(
            value, bytes) else None

    def _describe(self, inner: Map) -> int:
        """The number of a descriptor of this map: one there is, or one that no slot has."""
        for number, one in self._inner.items():
            if one is inner:
                return number
        family = self.family
        assert isinstance(family, of_maps.ArrayOfMapsFamily | of_maps.HashOfMapsFamily)
        count = of_maps.capacity(self.spec)
        number = next((n for n in range(1, count) if n not in self._inner), 0)
        if number == 0:
            used = {int.from_bytes(value, "little") for _, value in self.items()
                    if isinstance(value, bytes)}
            number = next(n for n in self._inner if n not in used)
            # who found it there may still be at it
            if not all(passed() for passed in self.readers):
                raise OSError(errno.EBUSY, "a worker does not come to the end of its batch",
                              self.spec.name)
        region, start = family.descriptors(self.spec)
        at = start + number * of_maps.DESCRIPTOR_BYTES
        self.memory(region)[at:at + of_maps.DESCRIPTOR_BYTES] = of_maps.describe(inner)
        self._inner.pop(number, None)
        self._inner[number] = inner  # the youngest last
        self._kept[number] = inner.memory("")
        return number

    # --- without keys ---------------------------------------------------------------------------

    def push(self, value: bytes, flags: int = BPF_ANY) -> None:
        """Into a queue or stack (BPF_EXIST: dropping the oldest if it is full), a bloom filter."""
        if len(value) != self.spec.value_size:
            raise ValueError(f"map {self.spec.name}: a value has {self.spec.value_size} bytes, "
                             f"got {len(value)}")
        self.check_writable()
        self._raise(self._operation("push_elem")(0, value, flags))

    def pop(self) -> bytes | None:
        """What a queue's or stack's next value is, taking it; None if there is none."""
        self.check_writable()
        return self._take("pop_elem")

    def peek(self) -> bytes | None:
        """The same, leaving it."""
        return self._take("peek_elem")

    def _take(self, operation: str) -> bytes | None:
        self.check_readable()
        out = ctypes.create_string_buffer(self.spec.value_size)
        status = self._operation(operation)(0, out)
        if status == -ENOENT:
            return None
        self._raise(status)
        return out.raw

    def may_contain(self, value: bytes) -> bool:
        """Was this pushed into a bloom filter?  False is certain."""
        if len(value) != self.spec.value_size:
            raise ValueError(f"map {self.spec.name}: a value has {self.spec.value_size} bytes, "
                             f"got {len(value)}")
        self.check_readable()
        return bool(self._operation("peek_elem")(0, value) == 0)

    # --- rings ----------------------------------------------------------------------------------

    def consume(self) -> list[bytes]:
        """The records of a ring buffer, or of all workers' rings of a PERF_EVENT_ARRAY, that were
        committed since; they leave the ring.  Raises PermissionError for a frozen RINGBUF."""
        self._check_ring()
        memory = self.memory("ring")
        records = [record for start, size in self._rings()
                   for record in ringbuf.consume(memory, start, size)]
        if self._event_fd >= 0:
            # Who committed before the consumer's position was written did not wake: look again.
            # The system call is also what keeps the two in this order.
            self._clear_event()
            if any(ringbuf.has_record(memory, start, size) for start, size in self._rings()):
                os.eventfd_write(self._event_fd, 1)
        return records

    def _check_ring(self) -> None:
        """Its positions are written through a mapping, which a frozen map does not get."""
        if self.frozen and self.spec.type != MapType.PERF_EVENT_ARRAY:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), self.spec.name)

    def _clear_event(self) -> None:
        """Before looking into a ring: else a record, or that it was drained, could go unnoticed."""
        if self._event_fd >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._event_fd)

    def produce(self, record: bytes) -> None:
        """Put a record into a USER_RINGBUF, for programs to drain.  Raises OSError: E2BIG if it
        can never fit, ENOSPC if others must be drained first."""
        if self.spec.type != MapType.USER_RINGBUF:
            raise TypeError(f"map {self.spec.name}: {type_name(self.spec.type)} has no such ring")
        self._check_ring()
        self._clear_event()
        user_ringbuf.produce(self.memory("ring"), self.spec.max_entries, record)

    @property
    def lost(self) -> int:
        """Records that found no room in a ring."""
        memory = self.memory("ring")
        return sum(int.from_bytes(memory[start + ringbuf.LOST:start + ringbuf.LOST + 8], "little")
                   for start, _ in self._rings())

    def fileno(self) -> int:
        """An eventfd, readable when there is something to consume, or when a USER_RINGBUF was
        drained; for select, poll and asyncio.

        Only the process whose workers write the ring can have it."""
        if self._event_fd < 0:
            self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._tell_event(self._event_fd)
            os.eventfd_write(self._event_fd, 1)  # there may be records already
        return self._event_fd

    def _tell_event(self, fd: int) -> None:
        memory = self.memory("ring")
        for start, _ in self._rings():
            memory[start + ringbuf.EVENT:start + ringbuf.EVENT + 4] = fd.to_bytes(4, "little")

    def _rings(self) -> tuple[tuple[int, int], ...]:
        if not isinstance(self.family, ringbuf.RingbufFamily | ringbuf.PerfEventArrayFamily):
            raise TypeError(f"map {self.spec.name}: {type_name(self.spec.type)} has no ring")
        return self.family.rings(self.spec, self.workers)

    # --- many entries ---------------------------------------------------------------------------

    def to_numpy(self) -> tuple[Any, Any]:
        """(keys, values) of all entries as NumPy arrays, typed by BTF; see batch.py."""
        from xdp_runtime.maps import batch
        return batch.read(self)

    def from_numpy(self, keys: Any, values: Any, flags: int = BPF_ANY) -> int:
        """Update an entry for each pair; how many.  OSError at the first that is refused."""
        from xdp_runtime.maps import batch
        return batch.write(self, keys, values, flags)

    def lookup_batch(self, token: bytes | None = None, count: int = 4096, flags: int = 0) -> Batch:
        """BPF_MAP_LOOKUP_BATCH: up to `count` entries from the token on; see batch.lookup."""
        from xdp_runtime.maps import batch
        return batch.lookup(self, token, count, flags)

    def lookup_and_delete_batch(self, token: bytes | None = None, count: int = 4096,
                                flags: int = 0) -> Batch:
        """BPF_MAP_LOOKUP_AND_DELETE_BATCH: the same, taking them out."""
        from xdp_runtime.maps import batch
        return batch.lookup(self, token, count, flags, remove=True)

    def update_batch(self, keys: Any, values: Any, flags: int = 0) -> int:
        """BPF_MAP_UPDATE_BATCH: how many.  Raises batch.BatchError, which says after how many."""
        from xdp_runtime.maps import batch
        return batch.update(self, keys, values, flags)

    def delete_batch(self, keys: Any, flags: int = 0) -> int:
        """BPF_MAP_DELETE_BATCH: how many.  Raises batch.BatchError, which says after how many."""
        from xdp_runtime.maps import batch
        return batch.delete(self, keys, flags)

    @property
    def typed(self) -> TypedMap:
        """The map as Python values."""
        return TypedMap(self)

    def __len__(self) -> int:
        if self.spec.type in _ARRAYS:
            return self.spec.max_entries
        length = getattr(self.family, "length", None)
        if length is not None:
            return int(length(self.spec, {one.name: self.memory(one.name) for one in self.regions}))
        if not hasattr(self.family, "count"):
            raise TypeError(f"map {self.spec.name}: {type_name(self.spec.type)} is not counted")
        region, offset = getattr(self.family, "count")  # noqa: B009  # families that count
        return int.from_bytes(self.memory(region)[offset:offset + 4], "little")

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.lookup(key) is not None

    def __getitem__(self, key: bytes) -> Value:
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: Value | Map) -> None:
        if isinstance(value, Map):
            self.set_inner(key, value)
        else:
            self.update(key, value)

    def __delitem__(self, key: bytes) -> None:
        try:
            self.delete(key)
        except FileNotFoundError:
            raise KeyError(key) from None

    def __repr__(self) -> str:
        spec = self.spec
        return (f"<Map {spec.name} {type_name(spec.type)} key {spec.key_size} value "
                f"{spec.value_size} entries {spec.max_entries}>")

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.spec.key_size:
            raise ValueError(
                f"map {self.spec.name}: a key has {self.spec.key_size} bytes, got {len(key)}")

    def _check_flags(self, flags: int) -> None:
        """Of what reads: the system call looks at them before it looks at the map."""
        if flags & ~BPF_F_LOCK:
            raise OSError(errno.EINVAL, f"flags {flags:#x}, only BPF_F_LOCK is known",
                          self.spec.name)

    def _check_lock(self, flags: int) -> None:
        if flags & BPF_F_LOCK and self.spec.lock_at < 0:
            raise OSError(errno.EINVAL, "its values hold no spin lock", self.spec.name)

    def _raise(self, status: int) -> None:
        if status:
            raise OSError(-status, os.strerror(-status), self.spec.name)


def _codec_beside(path: Path, spec: MapSpec) -> Codec | None:
    """By the BTF that the creator left in the same directory."""
    if not (spec.key_type_id or spec.value_type_id):
        return None
    from xdp_runtime.btf import Btf

    try:
        raw = path.with_name(BTF_NAME).read_bytes()
    except OSError:
        return None
    return BtfCodec.of(Btf.parse(raw), spec)
