"""docs/maps.md lists every family, with the flags that it takes."""

from __future__ import annotations

from pathlib import Path

from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.limits import FLAGS, names_of
from xdp_runtime.object import MapType

TEXT = (Path(__file__).parents[3] / "docs" / "maps.md").read_text()


def rows() -> dict[str, list[str]]:
    found = {}
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0].isupper():
            found[cells[0]] = cells
    return found


def test_every_family_and_no_other() -> None:
    assert set(rows()) == {MapType(kind).name for kind in FAMILIES}


def test_flags_are_true() -> None:
    for name, cells in rows().items():
        assert set(cells[2].split()) == set(names_of(int(FLAGS[MapType[name]]))), name
