"""The maps of a compiled program as C: where their memory is, and what it holds at first.

Memory that starts as zeros is .bss: an untouched map of a gigabyte is neither file nor memory.
What is not zero is found by making the map as any other and looking at it, so that no family
needs to know of this.  Seeds of hashes are drawn when the program starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xdp_runtime import state as st
from xdp_runtime.compiler.link import tail_call_targets
from xdp_runtime.compiler.map_ops import symbol_name
from xdp_runtime.errors import LoadError
from xdp_runtime.maps import family_of, of_maps, pool, ringbuf
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec

_OPERATIONS = {
    "read": "int64_t {}(int64_t, const void *, void *)",
    "peek": "void *{}(int64_t, const void *)",
    "update": "int64_t {}(int64_t, const void *, const void *, int64_t)",
    "update_all": "int64_t {}(int64_t, const void *, const void *, int64_t)",
    "delete": "int64_t {}(int64_t, const void *)",
    "next_key": "int64_t {}(int64_t, const void *, void *)",
}
_KEYLESS = {MapType.RINGBUF, MapType.USER_RINGBUF, MapType.PERF_EVENT_ARRAY, MapType.QUEUE,
            MapType.STACK, MapType.BLOOM_FILTER}
_MAX_BYTES = 2 << 30  # what code of the small model reaches
_PAGE = 4096
_SEED = bytes(range(0xA1, 0xB1))  # 16 bytes that are found again


def write(obj: Object, spec: ProgramSpec, workers: int, folder: Path) -> None:
    """image.c, layout.h and initial.bin.  Raises LoadError for maps that cannot be static."""
    stride = (st.WORKER_SIZE_BYTES + _PAGE - 1) // _PAGE * _PAGE
    numbers = {p.name: n + 1 for n, p in enumerate(tail_call_targets(obj, spec))}
    regions: list[str] = []
    tables: list[str] = []
    entries: list[str] = []
    fills: list[str] = []
    seeds: list[str] = []
    mirrors: list[str] = []
    pointers: list[str] = []
    slots: list[str] = []
    initial = bytearray()
    total = 0
    for index, one in enumerate(obj.maps):
        with Map.create(one, workers, seed=int.from_bytes(_SEED, "little")) as made:
            _fill_program_array(made, numbers)
            inner = _describe_inner(obj, index, made, workers, pointers)
            slots += (f"{{{index}, {key}, {obj.map_index(name) + 1}}}"
                      for key, name in one.slots if inner)
            if made.has_pools:
                pool.prepare(made.memory("head"), workers, 0)  # no process yet
            for region in family_of(one).regions(one, workers):
                name = f"r{index}_{region.name}"
                total += region.size_bytes
                regions.append(
                    f'uint8_t {name}[{region.size_bytes}] __asm__("'
                    f'{symbol_name(index, region.name)}") __attribute__((aligned({_PAGE})));')
                mirrors += [f"{{{name} + {offset}, {size}}}" for offset, size in region.mirrors]
                content = made.memory(region.name)
                for at, run in _not_zero(content):
                    fills.append(f"{{{name} + {at}, initial + {len(initial)}, {len(run)}}}")
                    initial += run
                    seed = run.find(_SEED)
                    if seed >= 0:
                        seeds.append(f"{name} + {at + seed}")
                content.release()
            tables += _operations(index, one, made.has_pools, _rings(one, workers), inner)
        entries.append(_entry(index, one, workers))
    if total > _MAX_BYTES:
        raise LoadError(f"the maps of {obj.name}", f"have {total >> 20} MiB, and static memory "
                        f"ends at {_MAX_BYTES >> 20} MiB", "use xdpu run, or smaller max_entries")
    (folder / "initial.bin").write_bytes(initial)
    (folder / "layout.h").write_text("".join(f"#define XDPU_{name} {value}\n" for name, value in (
        ("POOL_LINES", pool.LINES), ("POOL_LINE_BYTES", pool.LINE_BYTES),
        ("POOL_EPOCH", pool.EPOCH), ("WORKER_LINES", st.W_LINES),
        ("RING_EVENT", ringbuf.EVENT), ("RING_LOST", ringbuf.LOST),
        ("RING_CONSUMER", ringbuf.CONSUMER), ("RING_PRODUCER", ringbuf.PRODUCER),
        ("RING_DATA", ringbuf.DATA))))
    (folder / "image.c").write_text("\n".join([
        f"/* {spec.name} of {obj.name}, for {workers} worker(s) */", '#include "image.h"',
        '__asm__(".section .rodata\\nxdpu.initial: .incbin \\"initial.bin\\"\\n.previous");',
        'extern const uint8_t initial[] __asm__("xdpu.initial");', *regions, *tables,
        f"const char xdpu_program[] = {_text(spec.name)};",
        f"const unsigned xdpu_workers = {workers}, xdpu_map_count = {len(entries)};",
        *_array("const struct xdpu_map", "maps", entries, "{0}", counted=False),
        *_array("const struct xdpu_fill", "fills", fills, "{0}"),
        *_array("uint8_t *const", "seeds", seeds, "0"),
        *_array("const struct xdpu_mirror", "mirrors", mirrors, "{0}"),
        *_array("const struct xdpu_pointer", "pointers", pointers, "{0}"),
        *_array("const struct xdpu_slot", "slots", slots, "{0}"),
        f"uint8_t xdpu_worker_memory[{stride * workers}] __attribute__((aligned({_PAGE})));",
        f"const size_t xdpu_worker_stride = {stride};", ""]))


def _array(kind: str, name: str, items: list[str], nothing: str, counted: bool = True) -> list[str]:
    out = [f"{kind} xdpu_{name}[] = {{{', '.join(items) or nothing}}};"]
    if counted:
        out.append(f"const unsigned xdpu_{name.removesuffix('s')}_count = {len(items)};")
    return out


def _fill_program_array(made: Map, numbers: dict[str, int]) -> None:
    if made.spec.type == MapType.PROG_ARRAY:
        values = made.memory("values")
        for slot, name in made.spec.slots:
            values[4 * slot:4 * slot + 4] = numbers.get(name, 0).to_bytes(4, "little")


def _describe_inner(obj: Object, index: int, made: Map, workers: int,
                    pointers: list[str]) -> list[int]:
    """Descriptors (maps/of_maps.py) of all maps of the object that may be in this one, numbered by
    their place from 1: the numbers.  The addresses in them go to `pointers`, for the linker."""
    family, spec = made.family, made.spec
    if spec.inner is None or not isinstance(
            family, of_maps.ArrayOfMapsFamily | of_maps.HashOfMapsFamily):
        return []
    found = [n for n, one in enumerate(obj.maps, 1) if of_maps.fits(spec.inner, one)]
    if found and found[-1] >= of_maps.capacity(spec):
        raise LoadError(f"map {spec.name}", f"can hold one of the first {of_maps.capacity(spec)} "
                        f"maps of an object, and {obj.maps[found[-1] - 1].name} is behind them",
                        "define the maps in it first")
    region, start = family.descriptors(spec)
    content = made.memory(region)
    for number in found:
        at = start + number * of_maps.DESCRIPTOR_BYTES
        one = obj.maps[number - 1]
        words = [*family_of(one).parameters(one, workers)]
        words += [0] * (of_maps.DESCRIPTOR_BYTES // 8 - 1 - len(words)) + [number]  # its id
        for place, word in enumerate(words):
            if isinstance(word, str):
                pointers.append(f"{{r{index}_{region} + {at + 8 * place}, r{number - 1}_{word}}}")
            else:
                word &= 2**64 - 1
                content[at + 8 * place:at + 8 * place + 8] = word.to_bytes(8, "little")
    content.release()
    return found


def _not_zero(content: memoryview) -> Iterator[tuple[int, bytes]]:
    """Runs of pages that are not all zeros: (offset, bytes)."""
    start, run = 0, b""
    for at in range(0, len(content), _PAGE):
        page = bytes(content[at:at + _PAGE])
        if page.count(0) != len(page):
            start, run = (start, run + page) if run else (at, page)
        elif run:
            yield start, run
            run = b""
    if run:
        yield start, run


def _rings(spec: MapSpec, workers: int) -> list[str]:
    """What library code is told of a map's rings."""
    family = family_of(spec)
    if spec.type == MapType.USER_RINGBUF:
        starts = [(0, spec.max_entries)]
    elif isinstance(family, ringbuf.RingbufFamily | ringbuf.PerfEventArrayFamily):
        starts = list(family.rings(spec, workers))
    else:
        return []
    size = starts[0][1]
    return [f".ring_bytes = {size}", f".ring_stride = {ringbuf.DATA + 2 * size}",
            f".rings = {len(starts)}", f".user_ring = {int(spec.type == MapType.USER_RINGBUF)}"]


def _operations(index: int, spec: MapSpec, has_pools: bool, rings: list[str],
                inner: list[int]) -> list[str]:
    """The external functions of a map and the table of them."""
    have = [name for name in family_of(spec).operations
            if name in _OPERATIONS and spec.type not in _KEYLESS]
    out = [f'extern {_OPERATIONS[name].format(f"m{index}_{name}")}'
           f' __asm__("{symbol_name(index, name)}");' for name in have]
    fields = [f".{name} = m{index}_{name}" for name in have]
    if rings:
        fields += [f".ring = r{index}_ring", *rings]
    if has_pools:
        fields.append(f".pool = r{index}_head")
    if spec.inner is not None:
        out.append(f"static const unsigned i{index}[] = {{{', '.join(map(str, [*inner, 0]))}}};")
        fields.append(f".inner = i{index}")
    return [*out, f"static const struct xdpu_map_operations o{index} = "
            f"{{{', '.join(fields) or '0'}}};"]


def _entry(index: int, spec: MapSpec, workers: int) -> str:
    values = workers if family_of(spec).per_cpu else 1
    return (f"{{{_text(spec.name)}, {int(spec.type)}, {spec.key_size}, {spec.value_size}, "
            f"{spec.max_entries}, {spec.flags}, {values}, &o{index}}}")


def _text(name: str) -> str:
    """A C string: names come from the object file, and may have any byte in them."""
    return '"' + "".join(f"\\{byte:03o}" if not chr(byte).isalnum() or byte > 127 else chr(byte)
                         for byte in name.encode()) + '"'
