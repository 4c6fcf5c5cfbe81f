"""xdpu map: over maps in a run directory, and beside bpftool over the same map in the kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control import cli
from dataplane import rundir
from tests.control.run_xdpu import EXAMPLES
from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.elf import read_object
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import BTF_NAME, Map
from xdp_runtime.object import MapSpec, MapType

HASH = MapSpec("xdpu_test_h", MapType.HASH, 4, 8, 16)
WIDE = MapSpec("xdpu_test_w", MapType.HASH, 20, 30, 16)
PERCPU = MapSpec("xdpu_test_p", MapType.PERCPU_HASH, 4, 8, 16)
QUEUE = MapSpec("xdpu_test_q", MapType.QUEUE, 0, 4, 3)
SPECS = (HASH, WIDE, PERCPU, QUEUE)


@pytest.fixture(autouse=True)
def own_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDPU_RUNDIR", str(tmp_path))


@pytest.fixture
def maps() -> Iterator[dict[str, Map]]:
    run = rundir.create("mapped")
    folder = run.path / "maps"
    folder.mkdir()
    made = {}
    for spec in SPECS:
        one = made[spec.name] = Map.create(spec, bpf_syscall.possible_cpus(), folder)
        compile_operations(one)
    yield made
    for one in made.values():
        one.close()
    run.remove()


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["map", *words]) == code
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(said(capsys, *words, "-j"))


def test_entries(maps: dict[str, Map], capsys: pytest.CaptureFixture[str]) -> None:
    name = ("name", HASH.name)
    update = ("update", *name, "key", "1", "0x02", "3", "4", "value", "hex",
              *["11", "22", "33", "44", "55", "66", "77", "88"])
    assert said(capsys, *update) == ""
    assert maps[HASH.name][b"\1\2\3\4"] == bytes.fromhex("1122334455667788")
    assert said(capsys, "lookup", *name, "key", "1", "2", "3", "4") == (
        "key: 01 02 03 04  value: 11 22 33 44 55 66 77 88\n")
    assert said(capsys, *update, "noexist", code=1) == ""
    assert "File exists" in said_error(capsys, *update, "noexist")
    assert said(capsys, *update, "exist", "-j") == "null\n"
    assert said(capsys, "lookup", *name, "key", "0", "0", "0", "0", code=1) == (
        "key:\n00 00 00 00\n\nNot found\n")
    assert told(capsys, "getnext", *name) == {
        "key": None, "next_key": ["0x01", "0x02", "0x03", "0x04"]}
    assert said(capsys, "dump", *name).endswith("\nFound 1 element\n")
    assert said(capsys, "delete", *name, "key", "1", "2", "3", "4") == ""
    assert "No such file" in said_error(capsys, "delete", *name, "key", "1", "2", "3", "4")
    assert said(capsys, "dump", *name) == "Found 0 elements\n"


def said_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["map", *words]) != 0
    return capsys.readouterr().err


def test_frozen(maps: dict[str, Map], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("name", HASH.name, "key", "0", "0", "0", "0", "value", *"00000000")
    said(capsys, "update", *words)
    said(capsys, "freeze", "name", HASH.name)
    assert "not permitted" in said_error(capsys, "update", *words)
    assert told(capsys, "show", "name", HASH.name)["frozen"] == 1
    with pytest.raises(PermissionError):
        maps[HASH.name].delete(bytes(4))
    assert maps[HASH.name]._operation("delete")(0, bytes(4)) == 0, "programs still may"


def test_queue(maps: dict[str, Map], capsys: pytest.CaptureFixture[str]) -> None:
    name = ("name", QUEUE.name)
    for number in "123":
        said(capsys, "enqueue", *name, "value", number, "0", "0", "0")
    assert "Argument list too long" in said_error(capsys, "push", *name, "value", *"1000")
    assert said(capsys, "peek", *name) == "value: 01 00 00 00\n"
    assert told(capsys, "dequeue", *name) == {"key": [], "value": ["0x01", "0x00", "0x00", "0x00"]}
    assert len(maps[QUEUE.name]) == 2
    assert said(capsys, "pop", *name) and said(capsys, "pop", *name)
    assert said(capsys, "pop", *name, code=1) == "Error: empty map\n"


def test_which_map(maps: dict[str, Map], capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "show")
    assert [row["name"] for row in rows] == sorted(spec.name for spec in SPECS)
    for row in rows:
        assert told(capsys, "show", "id", str(row["id"])) == row
        assert told(capsys, "show", "pinned", f"mapped/{row['name']}") == row
        assert told(capsys, "show", "name", row["name"], "run", "mapped") == row
    path = maps[HASH.name].path
    assert path is not None
    with Map.create(replace(HASH, name=".data.cold"), 1, path.parent):  # a section of one's own
        assert told(capsys, "show", "name", ".data.cold")["name"] == ".data.cold"
    assert "there is none" in said_error(capsys, "dump", "name", "other")
    assert "there is none in run x" in said_error(capsys, "dump", "name", HASH.name, "run", "x")
    for words in (["dump"], ["dump", "name"], ["dump", "name", HASH.name, "more"],
                  ["lookup", "name", HASH.name, "key", "1"],
                  ["lookup", "name", HASH.name, "key", "1", "2", "3", "400"],
                  ["update", "name", HASH.name, "key", *"1234", "value", *"12345678", "perhaps"]):
        assert cli.main(["map", *words]) == 2, words
    capsys.readouterr()


def test_formatted(capsys: pytest.CaptureFixture[str]) -> None:
    """Types of the object are found beside its maps."""
    obj = read_object(EXAMPLES / "counter.o")
    assert obj.btf is not None
    run = rundir.create("typed")
    folder = run.path / "maps"
    folder.mkdir()
    (folder / BTF_NAME).write_bytes(obj.btf.raw)
    spec = next(spec for spec in obj.maps if spec.key_type_id and spec.value_type_id)
    with Map.create(spec, 2, folder):
        entry = told(capsys, "dump", "name", spec.name)[0]
        assert "formatted" in entry
        printed = json.loads(said(capsys, "dump", "name", spec.name))
        assert printed[0] == entry["formatted"]
    run.remove()


@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.skipif(shutil.which("bpftool") is None, reason="there is no bpftool")
@pytest.mark.parametrize("spec", [HASH, WIDE, PERCPU], ids=lambda spec: spec.name)
def test_as_bpftool_says(spec: MapSpec, maps: dict[str, Map],
                         capsys: pytest.CaptureFixture[str]) -> None:
    keys = [bytes(range(n, n + spec.key_size)) for n in range(1)]
    with KernelMap(spec) as kernel:
        for key in keys:
            value = bytes(range(100, 100 + spec.value_size))
            kernel.update(key, value)
            one = maps[spec.name]
            one[key] = [value] * one.workers if one.family.per_cpu else value
        hexes = [f"0x{byte:02x}" for byte in keys[0]]
        for words in (["dump", "name", spec.name],
                      ["lookup", "name", spec.name, "key", *hexes],
                      ["getnext", "name", spec.name]):
            theirs = subprocess.run(["bpftool", "map", *words], capture_output=True, text=True,
                                    check=True).stdout
            assert said(capsys, *words).split() == theirs.split()
            theirs = subprocess.run(["bpftool", "-j", "map", *words], capture_output=True,
                                    text=True, check=True).stdout
            assert told(capsys, *words) == json.loads(theirs)
        theirs = json.loads(subprocess.run(
            ["bpftool", "-j", "map", "show", "name", spec.name], capture_output=True, text=True,
            check=True).stdout)
        ours = told(capsys, "show", "name", spec.name)
        for shared in ("type", "name", "flags", "bytes_key", "bytes_value", "max_entries",
                       "frozen"):
            assert ours[shared] == theirs[shared], shared
