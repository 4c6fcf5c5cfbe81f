"""What is linked into a program, and what is compiled once for all, apart from them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from xdp_runtime import repeat
from xdp_runtime.compiler import link, templates
from xdp_runtime.core_relo import read_settled
from xdp_runtime.maps import family_of
from xdp_runtime.maps.share import SHARE_ROOM
from xdp_runtime.object import MapFlag, MapSpec, MapType

EXAMPLES = Path(__file__).parents[3] / "examples"


def symbols(code: bytes) -> tuple[set[str], set[str]]:
    """(global symbols that an object file defines, those that it needs)"""
    table = ELFFile(io.BytesIO(code)).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    shared = {(s.name, s["st_shndx"] == "SHN_UNDEF") for s in table.iter_symbols()
              if s["st_info"]["bind"] == "STB_GLOBAL"}
    return ({name for name, missing in shared if not missing},
            {name for name, missing in shared if missing})


def test_rare_templates_are_apart_and_everything_is_defined_once() -> None:
    obj = read_settled(EXAMPLES / "flow_table.o")
    image = link.compile_program(obj, obj.program(), 1, 3, [repeat.UNIT])
    whole = link.compile_program(obj, obj.program(), 1, 0, [repeat.UNIT])
    assert not whole.apart, "at O0 all is in one module"
    parts = [symbols(code) for code in (image.object_code, *image.apart)]
    names = [name for defined, _ in parts for name in defined]
    assert len(names) == len(set(names)) and {"table_repair", "pool_advance"} <= set(names)
    ours = {t.name for spec in obj.maps for t in templates.closure(
        [*family_of(spec).operations.values(), *repeat.UNIT.templates])}
    missing = {name for _, needed in parts for name in needed} - set(names)
    assert not missing & ours, "left are the C library's functions and the maps' memory"


def test_two_programs_have_the_same_code_apart() -> None:
    images = [link.compile_program(obj, obj.program(), 1, 3, [repeat.UNIT])
              for obj in (read_settled(EXAMPLES / f"{name}.o") for name in ("drop", "counter"))]
    assert images[0].object_code != images[1].object_code
    assert set(images[0].apart) <= set(images[1].apart)


@pytest.mark.parametrize(("kind", "lock_at"), [
    (MapType.LRU_HASH, -1), (MapType.LRU_HASH, 0), (MapType.LRU_PERCPU_HASH, -1)])
def test_only_maps_with_shares_have_their_templates(kind: MapType, lock_at: int) -> None:
    for flags in (0, MapFlag.NO_COMMON_LRU):
        spec = MapSpec("m", kind, 4, 8, 16, flags=flags, lock_at=lock_at)
        used = templates.closure(family_of(spec).operations.values())
        assert (SHARE_ROOM in used) == bool(flags)
