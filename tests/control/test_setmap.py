"""Entries of maps from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from control import setmap
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OBJ = Object("o.o", (), (
    MapSpec("peer", MapType.HASH, 4, 4, 2),
    MapSpec("wide", MapType.HASH, 1, 16, 8, flags=MapFlag.NO_PREALLOC),
    MapSpec("jumps", MapType.PROG_ARRAY, 4, 4, 8),
))


@pytest.mark.parametrize(("text", "entry"), [
    ("peer=3:4", ("peer", b"\3\0\0\0", b"\4\0\0\0")),
    ("peer=0x10:-1", ("peer", b"\x10\0\0\0", b"\xff\xff\xff\xff")),
    ("peer=hex:01020304:hex:0a0b0c0d", ("peer", b"\1\2\3\4", b"\n\v\f\r")),
    ("wide=255:hex:" + "ab" * 16, ("wide", b"\xff", b"\xab" * 16)),
])
def test_parse(text: str, entry: tuple[str, bytes, bytes]) -> None:
    assert setmap.parse(text, OBJ) == entry


@pytest.mark.parametrize(("text", "message"), [
    ("peer", "is no map entry (write NAME=KEY:VALUE"),
    ("=1:2", "is no map entry"),
    ("peer=1", "is no map entry"),
    ("peer=1:2:3", "is no map entry"),
    ("pear=1:2", "o.o has no map 'pear' (it has: peer, wide, jumps)"),
    ("peer=eth0:2", "the key 'eth0' is no number"),
    ("peer=1:", "the value '' is no number"),
    ("peer=1:4294967296", "the value 4294967296 does not fit into 4 bytes"),
    ("peer=hex:0102:1", "the key has 2 bytes, the map's has 4"),
    ("peer=hex:zz:1", "the key 'hex:zz' is not pairs of hex digits"),
    ("jumps=1:2", "jumps holds programs, not values"),
])
def test_refusal(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        setmap.parse(text, OBJ)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--set-map {text}: ")


def test_globals_are_no_entries() -> None:
    obj = read_object(EXAMPLES / "demo.o")
    name = next(m.name for m in obj.maps if m.global_kind)
    with pytest.raises(ConfigError, match="holds global variables"):
        setmap.parse(f"{name}=0:0", obj)


def test_apply() -> None:
    from xdp_runtime.program import load

    obj = read_object(EXAMPLES / "demo.o")
    with load(obj, workers=2) as program:
        setmap.apply(program, [setmap.parse("peer=3:4", obj), setmap.parse("verdicts=2:9", obj)])
        assert program.raw_maps["peer"][b"\3\0\0\0"] == b"\4\0\0\0"
        assert program.raw_maps["verdicts"][b"\2\0\0\0"] == [b"\x09" + bytes(7)] * 2
        with pytest.raises(ConfigError, match="--set-map verdicts: key 09000000 is refused"):
            setmap.apply(program, [setmap.parse("verdicts=9:9", obj)])
