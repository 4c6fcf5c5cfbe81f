"""A map family: how maps of one type lie in memory and which templates work on them.

A map is one shared-memory segment: a self-describing header page (layout.py), then the family's
regions, each aligned to a page.  Every region is a symbol of its own in compiled code
("map.<index>.<region>"), so LLVM knows that they do not overlap.

Each operation is a template whose first parameters are `family.parameters(spec, workers)`: region
names (passed as pointers) and numbers (passed as constants), then `worker` (i64), then:

    lookup(key) -> ptr          address of the value for this worker, or null
    update(key, value, flags) -> i64     0 or -errno, as the kernel's map operations
    delete(key) -> i64
    next_key(key, out) -> i64   user space's iteration: `key` may be null; 0 or -ENOENT
    peek(key) -> ptr            lookup from user space: leaves no trace (LRU); else as lookup

Error numbers and flags are the kernel's (kernel/bpf/arraymap.c, hashtab.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from xdp_runtime.object import MapSpec
from xdp_runtime.template import Template

BPF_ANY, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK = 0, 1, 2, 4
ENOENT, E2BIG, ENOMEM, EEXIST, EINVAL, EPERM = 2, 7, 12, 17, 22, 1
EAGAIN, EFAULT, ENOSPC, EOVERFLOW, EOPNOTSUPP = 11, 14, 28, 75, 95


def round_up(size: int, to: int) -> int:
    return (size + to - 1) // to * to


class Mended(str):
    """Why `Family.check` refuses a map that could be mended, and how."""

    mend: str

    def __new__(cls, why: str, mend: str) -> Self:
        one = super().__new__(cls, why)
        one.mend = mend
        return one


def no_entries(spec: MapSpec) -> Mended:
    return Mended("max_entries is 0", "say what its loader would, such as --map-entries "
                  f"{spec.name}=1024")


@dataclass(frozen=True, slots=True)
class Region:
    """`mirrors`: (offset, size) of parts that appear a second time right behind themselves."""

    name: str
    size_bytes: int
    mirrors: tuple[tuple[int, int], ...] = ()


class Family(Protocol):
    """One map type's layout and templates."""

    per_cpu: bool

    def check(self, spec: MapSpec) -> str | None:
        """Why the kernel would refuse this definition (EINVAL), or None."""

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]: ...

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]: ...

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """Fill fresh (zeroed) regions."""

    @property
    def operations(self) -> Mapping[str, Template]: ...
