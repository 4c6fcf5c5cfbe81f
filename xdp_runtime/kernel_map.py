"""KernelMap: a map in the kernel, by bpf(2)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from xdp_runtime import bpf_syscall as sys_bpf
from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_functions import KEY_TYPE_ID, VALUE_TYPE_ID, typed_values
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType

_PER_CPU = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH}
CONSTANT = {GlobalKind.RODATA, GlobalKind.KCONFIG}
_MAP_FIXED_NOREPLACE = 0x100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_size_t
_libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t]


class KernelMap:
    """A map in the kernel.  Refusals are OSErrors with the kernel's errno, a miss is None.

    The value of a per-CPU map is the CPUs' values one after the other, `value_size` bytes each
    (the kernel's padding to 8 is put on and taken off here).
    """

    def __init__(self, spec: MapSpec, inner_map_fd: int = 0) -> None:
        self.spec = spec
        self._cpus = sys_bpf.possible_cpus() if spec.type in _PER_CPU else 1
        entries = spec.max_entries
        if spec.type == MapType.PERF_EVENT_ARRAY and not entries:
            entries = sys_bpf.possible_cpus()
        flags = spec.flags | (MapFlag.RDONLY_PROG if spec.global_kind in CONSTANT else 0)
        types = typed_values(spec)
        btf_fd = sys_bpf.btf_load(types) if types else 0
        try:
            self.fd = sys_bpf.map_create(
                spec.type, spec.key_size, spec.value_size, entries, flags, spec.name, inner_map_fd,
                spec.numa_node, start_of(spec) if spec.type == MapType.ARENA else spec.map_extra,
                btf_fd, KEY_TYPE_ID if types else 0, VALUE_TYPE_ID if types else 0)
        except OSError as error:
            raise _map_error(spec, error) from error
        finally:
            if btf_fd:
                os.close(btf_fd)

    @property
    def is_per_cpu(self) -> bool:
        return self.spec.type in _PER_CPU

    def lookup(self, key: bytes, flags: int = 0) -> bytes | None:
        """BPF_MAP_LOOKUP_ELEM"""
        self._check_key(key)
        try:
            return self._strip(sys_bpf.map_lookup(self.fd, key or None, self._kernel_bytes,
                                                  flags))
        except FileNotFoundError:
            return None

    def lookup_percpu(self, key: bytes) -> tuple[bytes, ...] | None:
        """The same, one value a CPU (one only if the map is not per-CPU)."""
        value, size = self.lookup(key), self.spec.value_size
        if value is None:
            return None
        return tuple(value[i:i + size] for i in range(0, len(value), size))

    def lookup_and_delete(self, key: bytes = b"") -> bytes | None:
        """BPF_MAP_LOOKUP_AND_DELETE_ELEM; without a key, the pop of a queue or stack."""
        self._check_key(key)
        try:
            return self._strip(sys_bpf.map_lookup_and_delete(self.fd, key or None,
                                                             self._kernel_bytes))
        except FileNotFoundError:
            return None

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """BPF_MAP_UPDATE_ELEM.  A single value given to a per-CPU map is written for every CPU."""
        self._check_key(key)
        size = self.spec.value_size
        if self._cpus > 1 and len(value) == size:
            value *= self._cpus
        if len(value) != size * self._cpus:
            raise ValueError(f"map {self.spec.name}: a value has {size} bytes, got {len(value)}")
        sys_bpf.map_update(self.fd, key or None, self._pad(value), flags)

    def delete(self, key: bytes) -> None:
        """BPF_MAP_DELETE_ELEM"""
        self._check_key(key)
        sys_bpf.map_delete(self.fd, key)

    def next_key(self, key: bytes | None = None) -> bytes | None:
        """BPF_MAP_GET_NEXT_KEY: None starts, None ends."""
        try:
            return sys_bpf.map_next_key(self.fd, key, self.spec.key_size)
        except FileNotFoundError:
            return None

    def keys(self) -> Iterator[bytes]:
        key = self.next_key()
        while key is not None:
            yield key
            key = self.next_key(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def freeze(self) -> None:
        """BPF_MAP_FREEZE"""
        sys_bpf.map_freeze(self.fd)

    @contextmanager
    def pages(self) -> Iterator[memoryview]:
        """The pages of an ARENA where its pointers point; what is touched comes into being."""
        start, size = start_of(self.spec), PAGE_BYTES * self.spec.max_entries
        if _libc.mmap(start, size, mmap.PROT_READ | mmap.PROT_WRITE,
                      mmap.MAP_SHARED | _MAP_FIXED_NOREPLACE, self.fd, 0) != start:
            raise OSError(ctypes.get_errno(), f"{self.spec.name} cannot be mapped at {start:#x}")
        try:
            yield memoryview((ctypes.c_char * size).from_address(start)).cast("B")
        finally:
            _libc.munmap(start, size)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def _stride(self) -> int:
        return (self.spec.value_size + 7) & ~7 if self.is_per_cpu else self.spec.value_size

    @property
    def _kernel_bytes(self) -> int:
        return self._stride * self._cpus

    def _strip(self, raw: bytes) -> bytes:
        size = self.spec.value_size
        return b"".join(raw[i:i + size] for i in range(0, len(raw), self._stride))

    def _pad(self, value: bytes) -> bytes:
        size, stride = self.spec.value_size, self._stride
        return b"".join(value[i:i + size].ljust(stride, b"\0") for i in range(0, len(value), size))

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.spec.key_size:
            raise ValueError(
                f"map {self.spec.name}: a key has {self.spec.key_size} bytes, got {len(key)}")


def _map_error(spec: MapSpec, error: OSError) -> LoadError:
    kind = MapType(spec.type).name if spec.type in set(MapType) else f"type {spec.type}"
    mend = ""
    if error.errno == errno.EPERM:
        mend = sys_bpf.AS_ROOT
    elif error.errno == errno.EINVAL:
        mend = (f"{kind} with key {spec.key_size}, value {spec.value_size}, entries "
                f"{spec.max_entries}, flags {spec.flags:#x} is not a map this kernel knows")
    return LoadError(f"map {spec.name}", f"the kernel does not make it: {error.strerror}", mend)
