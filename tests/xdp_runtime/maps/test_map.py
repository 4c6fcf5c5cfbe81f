from __future__ import annotations

import ctypes
import gc
import mmap
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xdp_runtime.maps.traces import compiled_map, random_keys
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.errors import LoadError, OutOfMemory
from xdp_runtime.maps import layout, memory
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.typed import BtfCodec
from xdp_runtime.object import MapFlag, MapSpec, MapType

ROOT = Path(__file__).parents[3]
HASH = MapSpec("sessions", MapType.HASH, 20, 24, 1000)

READER = """
import sys
from pathlib import Path
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.map import Map
with Map.open(Path(sys.argv[1])) as one:
    compile_operations(one)
    for key, value in one.items():
        parts = value if isinstance(value, list) else [value]
        print(key.hex(), *(part.hex() for part in parts))
    if len(sys.argv) > 2:
        one[bytes.fromhex(sys.argv[2])] = bytes.fromhex(sys.argv[3])
"""


def in_other_process(*arguments: str) -> dict[str, list[str]]:
    out = subprocess.run([sys.executable, "-c", READER, *arguments], cwd=ROOT, check=True,
                         capture_output=True, text=True).stdout
    return {line.split()[0]: line.split()[1:] for line in out.splitlines()}


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_another_process_reads_and_writes_the_same(kind: int, tmp_path: Path) -> None:
    with Map.create(MapSpec("m", kind, 20, 24, 1000), 2, tmp_path) as one:
        compile_operations(one)
        for key in random_keys(one.spec, 900):
            one[key] = key + key[:4]
        expected = {key.hex(): [(key + key[:4]).hex()] for key in one}
        assert in_other_process(str(tmp_path / "m"), "ab" * 20, "cd" * 24) == expected
        assert one[b"\xab" * 20] == b"\xcd" * 24 and len(one) == 901


def test_another_process_reads_every_workers_values(tmp_path: Path) -> None:
    with Map.create(MapSpec("m", MapType.PERCPU_ARRAY, 4, 5, 3), 2, tmp_path) as one:
        compile_operations(one)
        one[b"\2\0\0\0"] = [b"first", b"other"]
        zero = [bytes(5).hex()] * 2
        assert in_other_process(str(tmp_path / "m")) == {
            "00000000": zero, "01000000": zero,
            "02000000": [b"first".hex(), b"other".hex()]}


def test_file_is_private_and_goes_with_its_creator(tmp_path: Path) -> None:
    one = Map.create(HASH, 1, tmp_path)
    path = tmp_path / "sessions"
    assert one.path == path and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["sessions"]  # no temporary left
    other = Map.open(path)
    assert other.spec == HASH and other.path is None
    other.close()
    assert path.exists()
    one.close()
    one.close()
    assert not path.exists()


def test_file_is_sparse(tmp_path: Path) -> None:
    with Map.create(MapSpec("m", MapType.HASH, 8, 48, 60_000), 1, tmp_path):
        status = (tmp_path / "m").stat()
        # a file system with large folios gives 2 MiB where a page is written
        assert status.st_size > 16 << 20 and status.st_blocks * 512 <= 2 << 20


def test_header_says_what_the_map_is(tmp_path: Path) -> None:
    spec = MapSpec("m", MapType.LRU_HASH, 6, 10, 77, flags=MapFlag.NO_COMMON_LRU)
    with Map.create(spec, 3, tmp_path, seed=12345), Map.open(tmp_path / "m") as other:
        content = (tmp_path / "m").read_bytes()
        header = layout.decode(content[:4096], len(content), "m")
        assert other.spec == header.spec == spec
        assert (header.workers, header.seed, header.pid) == (3, 12345, os.getpid())
        assert [r.name for r in other.regions] == ["head", "buckets", "elements"]
        symbols = other.symbols()
        assert all(address % mmap.PAGESIZE == 0 for address in symbols.values())
        assert ctypes.string_at(symbols["head"], 16) == (12345).to_bytes(16, "little")


def test_a_second_map_of_that_name_is_refused(tmp_path: Path) -> None:
    with Map.create(HASH, 1, tmp_path):
        with pytest.raises(LoadError, match="sessions: File exists"):
            Map.create(HASH, 1, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["sessions"]
    with pytest.raises(LoadError, match="No such file or directory"):
        Map.create(HASH, 1, tmp_path / "nowhere")
    for name in ("a/b", "..", ".btf", ".map.one"):  # the types lie beside it, and unfinished files
        with pytest.raises(LoadError, match="cannot be that of a file"):
            Map.create(MapSpec(name, MapType.HASH, 4, 4, 4), 1, tmp_path)


def test_limits_of_our_own() -> None:
    """Are not said to be the kernel's."""
    for kind, key, flags in ((MapType.HASH, 4, 0), (MapType.LPM_TRIE, 8, MapFlag.NO_PREALLOC)):
        with pytest.raises(LoadError, match=r"are more than \d+ bytes \(lower max_entries\)"):
            Map.create(MapSpec("m", kind, key, 8, 1 << 31, flags=flags), 1)
    with pytest.raises(LoadError, match=r"the kernel refuses such a map, too"):
        Map.create(MapSpec("m", MapType.HASH, 4, 0, 4), 1)


@pytest.mark.parametrize(("offset", "new", "why"), [
    (0, b"notamap\0", "is not a map of xdpu"),
    (8, struct.pack("<I", 9), "layout version 9"),
    (12, struct.pack("<I", 32), "CGRP_STORAGE"),
    (16, struct.pack("<I", 0), "damaged"),
    (16, struct.pack("<I", 60), "regions"),
    (24, struct.pack("<I", 1 << 30), "damaged"),
    (24, struct.pack("<I", 1 << 20), "regions"),
    (32, struct.pack("<I", 0), "damaged"),
    (56, struct.pack("<Q", 4096), "bytes, its map"),
    (64, struct.pack("<I", 99), "regions"),
    (68, struct.pack("<I", 99), "damaged"),
    (72, b"\xff\xfe", "damaged"),
    (216, struct.pack("<Q", 1 << 40), "regions"),
])
def test_damaged_files_are_refused(tmp_path: Path, offset: int, new: bytes, why: str) -> None:
    with Map.create(HASH, 1, tmp_path):
        page = bytearray((tmp_path / "sessions").read_bytes())
    page[offset:offset + len(new)] = new
    (tmp_path / "damaged").write_bytes(page)
    with pytest.raises(LoadError, match=why):
        Map.open(tmp_path / "damaged")


@pytest.mark.parametrize("content", [b"", b"x", b"xdpumap\0", bytes(5000)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LoadError, match="is not a map of xdpu"):
        Map.open(tmp_path / "file")
    with pytest.raises(LoadError, match="cannot be opened"):
        Map.open(tmp_path / "absent")


def test_cut_short_is_refused(tmp_path: Path) -> None:
    with Map.create(HASH, 1, tmp_path):
        whole = (tmp_path / "sessions").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-4096])
    with pytest.raises(LoadError, match="cut short"):
        Map.open(tmp_path / "cut")


@pytest.mark.parametrize("spec", [
    MapSpec("big", MapType.ARRAY, 4, 1 << 20, 1 << 22),
    MapSpec("big", MapType.HASH, 4, 1000, 1 << 24),
    MapSpec("big", MapType.ARRAY, 4, (1 << 31) - 1, (1 << 32) - 1),
], ids=str)
@pytest.mark.parametrize("named", [True, False])
def test_too_large_for_the_machine(spec: MapSpec, named: bool, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 << 30)
    with pytest.raises(OutOfMemory, match=r"map big: needs \d+ MiB, .* MiB available \(lower max"):
        Map.create(spec, 1, tmp_path if named else None)
    assert list(tmp_path.iterdir()) == []


def test_limits_of_the_process(tmp_path: Path) -> None:
    """Address space and file size that run out are OutOfMemory too, and leave nothing."""
    code = """
import resource, sys
from pathlib import Path
from xdp_runtime.errors import OutOfMemory
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType
limit = getattr(resource, sys.argv[1])
resource.setrlimit(limit, (300 << 20, 300 << 20))
try:
    Map.create(MapSpec("m", MapType.ARRAY, 4, 1 << 20, 400), 1, Path(sys.argv[2]))
except OutOfMemory as error:
    print(error)
"""
    for limit, why in (("RLIMIT_AS", "cannot be mapped"), ("RLIMIT_FSIZE", "no room for 401 MiB")):
        out = subprocess.run([sys.executable, "-c", code, limit, str(tmp_path)], cwd=ROOT,
                             capture_output=True, text=True)
        assert why in out.stdout, out
        assert list(tmp_path.iterdir()) == []


def test_available_bytes_is_sane() -> None:
    assert 1 << 20 < memory.available_bytes() < 1 << 50


def test_closed_map() -> None:
    one = compiled_map(HASH)
    operations = one._operations
    one.close()
    with pytest.raises(ValueError, match="map sessions is closed"):
        one.lookup(bytes(20))
    with pytest.raises(ValueError, match="closed"):
        one.symbols()
    assert operations


def test_unbound_map_says_so() -> None:
    with Map.create(HASH, 1) as one, pytest.raises(RuntimeError, match="no compiled read"):
        one.lookup(bytes(20))


def test_a_kept_view_outlives_close() -> None:
    one = Map.create(MapSpec(".bss", MapType.ARRAY, 4, 64, 1), 1)
    view = one.data
    one.close()
    gc.collect()
    view[0] = 1
    assert view[0] == 1 and len(view) == 64
    with Map.create(HASH, 1) as other, pytest.raises(TypeError, match="is HASH, not an ARRAY"):
        _ = other.data


class Numbers:
    """A codec of little-endian integers."""

    def decode_key(self, key: bytes) -> int:
        return int.from_bytes(key, "little")

    def encode_key(self, key: int) -> bytes:
        return key.to_bytes(4, "little")

    def decode_value(self, value: bytes) -> int:
        return int.from_bytes(value, "little")

    def encode_value(self, value: int) -> bytes:
        return value.to_bytes(8, "little")


def test_typed() -> None:
    with compiled_map(MapSpec("m", MapType.HASH, 4, 8, 10)) as one:
        one.typed[b"key "] = bytes(8)  # no types: bytes
        assert dict(one.typed.items()) == {b"key ": bytes(8)}
        del one.typed[b"key "]
        one.codec = Numbers()
        typed = one.typed
        typed[5], typed[6] = 50, 60
        assert typed[5] == 50 and 5 in typed and 7 not in typed and len(typed) == 2
        assert dict(typed.items()) == {5: 50, 6: 60} and sorted(typed) == [5, 6]
        del typed[5]
        assert typed.lookup(5) is None and one.lookup(b"\6\0\0\0") == b"\x3c" + bytes(7)
        typed.update(6, 61, 2)
        typed.delete(6)
        assert len(typed) == 0
    with compiled_map(MapSpec("m", MapType.PERCPU_ARRAY, 4, 8, 2), workers=2) as one:
        one.codec = Numbers()
        one.typed[1] = [7, 8]
        assert one.typed[1] == [7, 8]


def test_codec_of_a_definition_without_types() -> None:
    assert BtfCodec.of(None, HASH) is None
