"""BPF_F_* of maps: what programs and user space may do with them, as in the kernel."""

from __future__ import annotations

import errno
import mmap
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps import kernel_batch
from tests.xdp_runtime.maps.test_limits import OUTER, kernels_answer, plain
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime import asm, bpf_syscall
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.errors import VerifyError
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.limits import FLAGS, refusal
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.verifier.report import verify

pytestmark = [pytest.mark.root, needs_bpf()[1]]
KEYED = (MapType.HASH, MapType.ARRAY, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.PERCPU_ARRAY,
         MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
KEYLESS = (MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER)

_START = """
    *(u64 *)(r10 - 8) = 0
    *(u64 *)(r10 - 16) = 0
    r1 = map[m] ll
    r2 = r10
    r2 += -16
"""
_FOUND = _START + "call bpf_map_lookup_elem\n    if r0 == 0 goto end\n"
_END = "end:\n    r0 = 2\n    exit\n"
_UPDATE = "    r3 = r10\n    r3 += -8\n    r4 = 0\n"
PROGRAMS = {
    "lookup": _START + "call bpf_map_lookup_elem\n",
    "read": _FOUND + "r1 = *(u8 *)(r0 + 0)\n",
    "write": _FOUND + "*(u8 *)(r0 + 0) = 1\n",
    "add": _FOUND + "r1 = 1\n    lock *(u32 *)(r0 + 0) += r1\n",
    "pass on": _FOUND + "r1 = map[m] ll\n    r2 = r10\n    r2 += -16\n    r3 = r0\n    r4 = 0\n"
               "    call bpf_map_update_elem\n",
    "update": _START + _UPDATE + "call bpf_map_update_elem\n",
    "delete": _START + "call bpf_map_delete_elem\n",
    "push": _START + "r3 = 0\n    call bpf_map_push_elem\n",
    "pop": _START + "call bpf_map_pop_elem\n",
    "peek": _START + "call bpf_map_peek_elem\n",
}


def accepted(load: Callable[[], Any]) -> bool:
    try:
        load()
    except VerifyError:
        return False
    return True


@pytest.mark.parametrize("flags", [0, MapFlag.RDONLY_PROG, MapFlag.WRONLY_PROG],
                         ids=["none", "RDONLY_PROG", "WRONLY_PROG"])
@pytest.mark.parametrize("kind", [*KEYED, *KEYLESS], ids=lambda kind: kind.name)
def test_programs(kind: MapType, flags: int) -> None:
    spec = plain(kind)
    spec = MapSpec("m", kind, spec.key_size, 8, 4, flags=spec.flags | flags)
    answers = {}
    for name, text in PROGRAMS.items():
        obj = Object("t", (ProgramSpec("t", "xdp", "xdp", asm.assemble(text + _END, ["m"])),),
                     (spec,), "GPL")
        ours = verify(obj, obj.programs[0]).ok
        theirs = accepted(lambda: load_into_kernel(obj).close())  # noqa: B023
        answers[name] = ours
        assert ours == theirs, name
    assert any(answers.values()) and not all(answers.values())


def code(call: Callable[[], Any]) -> int:
    """0, an errno, or what else it answers."""
    try:
        found = call()
    except OSError as error:
        return -(error.errno or 0)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def user_calls(kind: MapType, ours: Map, theirs: KernelMap) -> dict[str, tuple[Any, Any]]:
    """Every command of bpf(2) on a map, here and there."""
    size = ours.spec.value_size
    key, value = bytes(ours.spec.key_size), b"\1" * size
    values: Any = [value] * ours.workers if ours.family.per_cpu else value
    if kind in KEYLESS:
        calls = {"push": (lambda: ours.push(value), lambda: theirs.update(b"", value)),
                 "freeze": (ours.freeze, theirs.freeze),
                 "push frozen": (lambda: ours.push(value), lambda: theirs.update(b"", value)),
                 "freeze again": (ours.freeze, theirs.freeze)}
        if kind == MapType.BLOOM_FILTER:
            return {"push first": calls["push"],
                    "peek": (lambda: 0 if ours.may_contain(value) else -errno.ENOENT,
                             lambda: asks_bloom(theirs, value)),
                    **calls}
        return {"push first": calls["push"],
                "peek": (ours.peek, lambda: theirs.lookup(b"")),
                "pop": (ours.pop, theirs.lookup_and_delete), **calls,
                "pop frozen": (ours.pop, theirs.lookup_and_delete),
                "peek frozen": (ours.peek, lambda: theirs.lookup(b""))}
    raw = bytes(kernel_batch.stride(theirs))

    def batch(command: int) -> Callable[[], int]:
        return lambda: -kernel_batch.call(theirs, command, 1, None, key, raw).error

    import numpy as np
    keys = np.frombuffer(key, np.uint8).reshape(1, -1)
    many = np.frombuffer(value * (ours.workers if ours.family.per_cpu else 1), np.uint8)

    def looked(remove: bool) -> int:
        part = (ours.lookup_and_delete_batch if remove else ours.lookup_batch)(None, 1)
        return -errno.ENOENT if part.ended else 0

    steps = {
        "update": (lambda: ours.update(key, values), lambda: theirs.update(key, value)),
        "lookup": (lambda: ours.lookup(key), lambda: theirs.lookup(key)),
        "next": (ours.next_key, theirs.next_key),
        "take": (lambda: ours.lookup_and_delete(key), lambda: theirs.lookup_and_delete(key)),
        "delete": (lambda: ours.delete(key), lambda: theirs.delete(key)),
        "batch update": (lambda: ours.update_batch(keys, many) and 0, batch(kernel_batch.UPDATE)),
        "batch delete": (lambda: ours.delete_batch(keys) and 0, batch(kernel_batch.DELETE)),
        "batch lookup": (lambda: looked(False), batch(kernel_batch.LOOKUP)),
        "batch take": (lambda: looked(True), batch(kernel_batch.LOOKUP_AND_DELETE)),
    }
    return {**steps, "freeze": (ours.freeze, theirs.freeze),
            **{f"{name} frozen": both for name, both in steps.items()},
            "freeze again": (ours.freeze, theirs.freeze)}


def asks_bloom(one: KernelMap, value: bytes) -> int:
    """The system call reads the value it asks for."""
    import ctypes
    import struct

    from xdp_runtime import bpf_syscall as sys_bpf
    room = ctypes.create_string_buffer(value, len(value))
    attr = bytearray(struct.pack("=I4xQQQ", one.fd, 0, ctypes.addressof(room), 0))
    sys_bpf.bpf(sys_bpf.Cmd.MAP_LOOKUP_ELEM, attr)
    return 0


@pytest.mark.parametrize("flags", [0, MapFlag.RDONLY, MapFlag.WRONLY],
                         ids=["none", "RDONLY", "WRONLY"])
@pytest.mark.parametrize("kind", [*KEYED, *KEYLESS], ids=lambda kind: kind.name)
def test_user_space(kind: MapType, flags: int) -> None:
    spec = plain(kind)
    spec = MapSpec("m", kind, spec.key_size, 5, 4, flags=spec.flags | flags)
    with compiled_map(spec, bpf_syscall.possible_cpus()) as ours, KernelMap(spec) as theirs:
        for name, (here, there) in user_calls(kind, ours, theirs).items():
            found = code(here)
            assert found == code(there), name


MAPPED = [0, MapFlag.MMAPABLE, *(MapFlag.MMAPABLE | other for other in (
    MapFlag.RDONLY, MapFlag.WRONLY, MapFlag.RDONLY_PROG, MapFlag.WRONLY_PROG))]


@pytest.mark.parametrize("flags", MAPPED, ids=lambda flags: f"{int(flags):#x}")
def test_mappings_and_freezing(flags: int) -> None:
    spec = MapSpec("m", MapType.ARRAY, 4, 12, 600, flags=flags)
    with compiled_map(spec) as ours, KernelMap(spec) as theirs:
        for write in (False, True):
            assert code(lambda: _map_ours(ours, write)) == code(  # noqa: B023
                lambda: _map_theirs(theirs, write)), write  # noqa: B023
        if code(lambda: _map_ours(ours, True)) == 0:
            with ours.mmap(write=True):
                held = mmap.mmap(theirs.fd, 4096)
                assert code(ours.freeze) == code(theirs.freeze) == -errno.EBUSY
                held.close()
        assert code(ours.freeze) == code(theirs.freeze)
        for write in (False, True):
            assert code(lambda: _map_ours(ours, write)) == code(  # noqa: B023
                lambda: _map_theirs(theirs, write)), f"frozen, {write}"  # noqa: B023


def _map_ours(one: Map, write: bool) -> None:
    with one.mmap(write):
        pass


def _map_theirs(one: KernelMap, write: bool) -> None:
    access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
    mmap.mmap(one.fd, 600 * 16, access=access).close()


def test_what_is_mapped_is_the_map() -> None:
    """16 bytes apart for values of 12, here and there; written both ways."""
    import numpy as np
    spec = MapSpec("m", MapType.ARRAY, 4, 12, 600, flags=MapFlag.MMAPABLE)
    with compiled_map(spec) as ours, KernelMap(spec) as theirs:
        with ours.mmap(write=True) as view:
            mine, there = np.frombuffer(view, np.uint8), mmap.mmap(theirs.fd, 600 * 16)
            for n in (0, 7, 599):
                mine[16 * n:16 * n + 12] = n & 255
                there[16 * n:16 * n + 12] = bytes([n & 255] * 12)
                key = n.to_bytes(4, "little")
                assert ours[key] == theirs.lookup(key) == bytes([n & 255] * 12)
            ours[bytes(4)] = b"hello, world"
            assert bytes(mine[:12]) == b"hello, world"
            there.close()
            del mine
        with ours.mmap() as view:
            assert view.readonly and view.nbytes == 9600


def test_another_process_has_it_mapped(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from xdp_runtime.maps.map import Map
        with Map.open(Path(sys.argv[1])) as one, one.mmap(write=True) as view:
            view[0] = 7
            print("mapped", flush=True)
            sys.stdin.read()
    """
    spec = MapSpec("m", MapType.ARRAY, 4, 8, 4, flags=MapFlag.MMAPABLE)
    with Map.create(spec, 1, tmp_path) as one:
        compile_operations(one)
        other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script),
                                  str(tmp_path / "m")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout is not None and other.stdout.readline() == b"mapped\n"
        with pytest.raises(OSError, match="another process") as busy:
            one.freeze()
        assert busy.value.errno == errno.EBUSY
        other.kill()  # its mapping goes with it
        other.communicate()
        one.freeze()
        assert one.frozen and one[bytes(4)] == b"\7" + bytes(7)


def test_values_with_a_lock_are_not_frozen() -> None:
    with compiled_map(MapSpec("m", MapType.HASH, 4, 16, 4, lock_at=0)) as one:
        assert code(one.freeze) == -524


@pytest.mark.parametrize("kind", [MapType.RINGBUF, MapType.USER_RINGBUF],
                         ids=lambda kind: kind.name)
def test_a_frozen_ring_is_not_mapped_to_write(kind: MapType) -> None:
    """One can neither consume it nor produce into it: that moves a position, in mapped memory."""
    at = 0 if kind == MapType.RINGBUF else 4096
    with compiled_map(plain(kind)) as ours, KernelMap(plain(kind)) as theirs:
        steps = ((lambda: ours.consume() and 0) if kind == MapType.RINGBUF
                 else (lambda: ours.produce(b"12345678")),
                 lambda: mmap.mmap(theirs.fd, 4096, offset=at).close())
        assert [code(one) for one in steps] == [0, 0]
        assert code(ours.freeze) == code(theirs.freeze) == 0
        assert [code(one) for one in steps] == [-errno.EPERM] * 2


def test_zero_seed() -> None:
    """Two maps of it are alike, whatever was put in first; others are not."""
    keys = [n.to_bytes(4, "little") for n in range(200)]
    for flags, alike in ((MapFlag.ZERO_SEED, True), (0, False)):
        orders = []
        for _ in range(2):
            spec = MapSpec("m", MapType.HASH, 4, 8, 200, flags=flags)
            with compiled_map(spec) as ours, KernelMap(spec) as theirs:
                for key in keys:
                    ours[key] = bytes(8)
                    theirs.update(key, bytes(8))
                orders.append((list(ours), list(theirs.keys())))
        assert (orders[0][0] == orders[1][0]) == alike
        assert (orders[0][1] == orders[1][1]) == alike


@pytest.mark.parametrize("kind", KEYED, ids=lambda kind: kind.name)
def test_order_of_keys(kind: MapType) -> None:
    """What get_next_key promises: each key once; from a key that went, or never was, it begins
    anew; deleting what was given leaves the rest; what comes behind an array's last is the end."""
    spec = plain(kind)
    spec = MapSpec("m", kind, spec.key_size, 8, 64, flags=spec.flags)
    fixed = kind in (MapType.ARRAY, MapType.PERCPU_ARRAY)
    keys = [(8 * spec.key_size - 32).to_bytes(4, "little") + n.to_bytes(4, "big")
            if kind == MapType.LPM_TRIE else n.to_bytes(spec.key_size, "little")
            for n in range(40)]
    with compiled_map(spec, bpf_syscall.possible_cpus()) as ours, KernelMap(spec) as theirs:
        for one in (ours, theirs):
            for given in keys:
                value = b"12345678"
                listed = one is ours and ours.family.per_cpu
                one.update(given, [value] * ours.workers if listed else value)  # type: ignore
            seen, key = [], one.next_key()
            while key is not None:
                seen.append(key)
                key = one.next_key(key)
            assert len(seen) == len(set(seen)) == (64 if fixed else 40)
            assert set(keys) <= set(seen) and sorted(one.keys()) == sorted(seen)
            if fixed:
                beyond = (64).to_bytes(4, "little")
                assert one.next_key(beyond) == bytes(4)
                continue
            one.delete(seen[3])
            if kind != MapType.LPM_TRIE:  # a trie goes on where it would be
                assert one.next_key(seen[3]) == one.next_key()
            gone, key = [], one.next_key()
            while key is not None:
                after = one.next_key(key)
                one.delete(key)
                gone.append(key)
                key = after
            assert gone == seen[:3] + seen[4:]
            assert one.next_key() is None and one.next_key(seen[0]) is None
        if fixed or kind == MapType.LPM_TRIE:
            assert list(ours) == list(theirs.keys())


def test_sizes_that_user_space_sees() -> None:
    """The value of a per-CPU map is rounded up to 8 bytes for each CPU, an array's is not."""
    cpus = bpf_syscall.possible_cpus()
    for kind in (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.ARRAY, MapType.HASH):
        for size in (1, 3, 8, 12):
            spec = MapSpec("m", kind, 4, size, 4)
            with compiled_map(spec, cpus) as ours, KernelMap(spec) as theirs:
                from xdp_runtime.maps import batch
                assert batch._width(ours) == kernel_batch.stride(theirs) == (
                    (size + 7) // 8 * 8 * cpus if theirs.is_per_cpu else size)


INNER = [MapSpec("t", MapType.ARRAY, 4, 8, 4, flags=MapFlag.INNER_MAP),
         *(plain(MapType(kind)) for kind in FLAGS if kind not in OUTER)]


@pytest.mark.parametrize("template", INNER, ids=lambda one: f"{MapType(one.type).name}"
                         f"{'-INNER_MAP' if one.flags & MapFlag.INNER_MAP else ''}")
def test_inner_maps(template: MapSpec) -> None:
    """Which types may be inside, and whether those may differ in max_entries: only arrays of
    BPF_F_INNER_MAP, not other arrays and XSKMAPs, all others."""
    outer = MapSpec("m", MapType.ARRAY_OF_MAPS, 4, 4, 2, inner=template)
    with KernelMap(template) as their_template:
        refused = refusal(outer)
        assert (refused[0] if refused else 0) == kernels_answer(outer, their_template.fd)
        if refused:
            return
        with KernelMap(outer, their_template.fd) as theirs, compiled_map(outer) as ours:
            for entries in (template.max_entries, 2 * template.max_entries):
                inner = replace(template, name="i", max_entries=entries)
                with KernelMap(inner) as their_inner, compiled_map(inner) as one:
                    there = code(lambda: bpf_syscall.map_update(
                        theirs.fd, bytes(4), their_inner.fd.to_bytes(4, "little")))
                    assert code(lambda: ours.set_inner(bytes(4), one)) == there, entries
            alike = template.type in (MapType.ARRAY, MapType.XSKMAP) and not template.flags
            assert there == (-errno.EINVAL if alike else 0)


def test_every_flag_has_a_type() -> None:
    taken = MapFlag(0)
    for flags in FLAGS.values():
        taken |= flags
    assert {MapFlag.RDONLY_PROG, MapFlag.WRONLY_PROG, MapFlag.MMAPABLE, MapFlag.ZERO_SEED,
            MapFlag.NO_COMMON_LRU, MapFlag.INNER_MAP} <= set(taken)
    assert refusal(MapSpec("m", MapType.ARRAY, 4, 8, 4, flags=MapFlag.ZERO_SEED)) is not None
