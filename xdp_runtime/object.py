"""Object: what an ELF file says.  Frozen, and the same on every machine.

Nothing here looks at the machine: reading the same file anywhere gives an equal Object.
`elf.py` makes Objects; `program.py` turns one into a Program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from xdp_runtime.isa import Insns

if TYPE_CHECKING:
    from xdp_runtime.btf import Btf


class MapType(IntEnum):
    """enum bpf_map_type, include/uapi/linux/bpf.h"""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


class MapFlag(IntFlag):
    """BPF_F_* of map creation, include/uapi/linux/bpf.h"""

    NO_PREALLOC = 1 << 0
    NO_COMMON_LRU = 1 << 1
    NUMA_NODE = 1 << 2
    RDONLY = 1 << 3
    WRONLY = 1 << 4
    STACK_BUILD_ID = 1 << 5
    ZERO_SEED = 1 << 6
    RDONLY_PROG = 1 << 7
    WRONLY_PROG = 1 << 8
    CLONE = 1 << 9
    MMAPABLE = 1 << 10
    PRESERVE_ELEMS = 1 << 11
    INNER_MAP = 1 << 12
    SEGV_ON_FAULT = 1 << 17
    NO_USER_CONV = 1 << 18


class GlobalKind(IntEnum):
    """Which data section an implicit global-variable map stands for."""

    NONE = 0
    RODATA = 1
    DATA = 2
    BSS = 3
    KCONFIG = 4


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map definition.  Sizes in bytes.

    `type` stays an int so that an object with a map type nobody knows can still be read.
    `initial` is the content of a globals map (one value); `slots` is what `__array(values, ...)`
    puts where: (index, name of the program or map).  `pinning` is LIBBPF_PIN_BY_NAME (1) or 0.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    pinning: int = 0
    global_kind: GlobalKind = GlobalKind.NONE
    initial: bytes = b""
    slots: tuple[tuple[int, str], ...] = ()
    inner: MapSpec | None = None
    key_type_id: int = 0
    value_type_id: int = 0
    numa_node: int = 0
    lock_at: int = -1  # offset of the struct bpf_spin_lock in its values, -1: none
    map_extra: int = 0  # meaning depends on the type (bloom filter: number of hash functions)
    timer_at: int = -1  # offset of the struct bpf_timer in its values, -1: none


@dataclass(frozen=True, slots=True)
class Function:
    """A function inside a program: slots [start, end)."""

    name: str
    start: int
    end: int
    is_global: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Source line of the instructions from `slot` on (BTF.ext line info)."""

    slot: int
    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class Relocation:
    """CO-RE: the instruction at `slot` depends on a type of the kernel (core_relo.py).

    `type` is an id in the Object's BTF, `access` a path in it, `kind` enum bpf_core_relo_kind."""

    slot: int
    type: int
    access: str
    kind: int


@dataclass(frozen=True, slots=True)
class Extern:
    """A variable of section .kconfig and its place in that map (kconfig.py)."""

    name: str
    kind: str
    offset: int
    size: int
    weak: bool
    align: int


Poison = tuple[int, str, str]  # (slot, why nothing may run that instruction, the mend)


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program, its called functions appended, its map references resolved to map indices.

    `kind` is "xdp" or "xdp.frags" (also "xdp/devmap", "xdp/cpumap" and their frags forms),
    or the raw section name for what is not XDP.
    """

    name: str
    section: str
    kind: str
    insns: Insns
    functions: tuple[Function, ...] = ()
    lines: tuple[Line, ...] = ()
    relocations: tuple[Relocation, ...] = ()  # still to be applied
    poisoned: tuple[Poison, ...] = ()
    autoload: bool = True  # False of SEC("?xdp"): only where it is asked for by name

    @property
    def is_xdp(self) -> bool:
        return self.kind.split("/")[0] in ("xdp", "xdp.frags")

    @property
    def replaces(self) -> bool:
        """BPF_PROG_TYPE_EXT: it takes the place of a function of a loaded program."""
        return self.kind.split("/")[0] == "freplace"

    @property
    def place(self) -> str:
        """"devmap" or "cpumap" of a program for packets redirected by such a map, else "".

        It runs because a map's entry names it; on its own the kernel runs it nowhere."""
        return self.kind.partition("/")[2] if self.is_xdp else ""

    @property
    def has_frags(self) -> bool:
        """BPF_F_XDP_HAS_FRAGS: it takes packets in several buffers."""
        return self.kind.split("/")[0] == "xdp.frags"


REPLACES = ("replaces a function of a program that runs in the kernel (freplace), which nothing "
            "here does")


_TARGETS = {"devmap": "dev=IF", "cpumap": "qsize=192"}


@dataclass(frozen=True, slots=True)
class Object:
    name: str
    programs: tuple[ProgramSpec, ...]
    maps: tuple[MapSpec, ...]
    license: str = ""
    externs: tuple[Extern, ...] = ()
    btf: Btf | None = field(default=None, compare=False)

    def program(self, name: str | None = None) -> ProgramSpec:
        """The named program, or the file's first XDP program: of those that libbpf would load
        unasked, and that an interface takes, if there are any.  Raises LoadError."""
        from xdp_runtime.errors import LoadError

        candidates = sorted((p for p in self.programs if p.is_xdp),
                            key=lambda p: (p.place != "", not p.autoload))
        if name is not None:
            for program in self.programs:
                if name in (program.name, program.section):
                    return program
            have = ", ".join(p.name for p in self.programs) or "none"
            raise LoadError(f"program {name!r}", f"not in {self.name}", f"it has: {have}")
        if not candidates:
            for program in self.programs:
                if program.replaces:
                    raise LoadError(f"program {program.name}", REPLACES)
            have = ", ".join(f"{p.name} ({p.section})" for p in self.programs)
            raise LoadError(self.name, f"no XDP program; it has {have or 'no program at all'}",
                            'put the program in SEC("xdp")')
        return candidates[0]

    def attachable(self, name: str | None = None) -> ProgramSpec:
        """`program`, if packets of an interface may come to it.  Raises LoadError."""
        from xdp_runtime.errors import LoadError

        spec = self.program(name)
        if spec.place:
            raise LoadError(f"program {spec.name}", f"section {spec.section!r} is for packets that "
                            f"a {spec.place} redirects, and the kernel attaches it to no interface",
                            "run the program that redirects, and name this one in the map's entry, "
                            f"such as --set-map MAP=KEY:{_TARGETS[spec.place]},prog={spec.name}")
        return spec

    def map_index(self, name: str) -> int:
        for index, spec in enumerate(self.maps):
            if spec.name == name:
                return index
        raise KeyError(name)


def with_max_entries(obj: Object, entries: Mapping[str, int]) -> Object:
    """The Object with maps of these sizes, as bpf_map__set_max_entries() of libbpf has it.  Raises
    ConfigError for a map it does not have, or a number that no map can have."""
    from xdp_runtime.errors import ConfigError

    maps = list(obj.maps)
    for name, number in entries.items():
        at = next((at for at, spec in enumerate(maps) if spec.name == name), None)
        if at is None or maps[at].global_kind != GlobalKind.NONE:
            have = ", ".join(m.name for m in maps if m.global_kind == GlobalKind.NONE) or "none"
            raise ConfigError(f"map {name}", f"not in {obj.name}", f"it has: {have}")
        least = 1 if maps[at].type == MapType.HASH_OF_MAPS else max(
            (slot + 1 for slot, _ in maps[at].slots), default=1)
        if not least <= number < 1 << 32:
            raise ConfigError(f"map {name}", f"cannot have {number} entries",
                              f"give a number from {least} to {(1 << 32) - 1}")
        maps[at] = replace(maps[at], max_entries=number)
    return replace(obj, maps=tuple(maps)) if entries else obj
