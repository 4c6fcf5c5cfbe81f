"""xdpu map beside bpftool: the same words to both, about maps of one object here and there."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control import cli
from dataplane import rundir
from tests.control.run_xdpu import OBJECTS
from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall
from xdp_runtime.elf import read_object
from xdp_runtime.maps.map import BTF_NAME, Map
from xdp_runtime.object import MapType

OBJECT = OBJECTS / "dumped.o"
pytestmark = [pytest.mark.root, needs_bpf()[1],
              pytest.mark.skipif(shutil.which("bpftool") is None, reason="there is no bpftool"),
              pytest.mark.skipif(not os.path.ismount("/sys/fs/bpf"),
                                 reason="there is no /sys/fs/bpf to pin maps in")]
SPECS = {spec.name: spec for spec in read_object(OBJECT).maps}
KEYED = ("a_array", "a_hash", "a_lru", "p_array", "p_hash", "p_lru", "n_hash", "n_percpu", "trie")
PINNED = {".bss": "dumped_bss", ".data": "dumped_data", ".rodata": "dumped_rodata"}


@dataclass
class Both:
    """The maps of the object: `folder` in the kernel, the run "dumped" here."""

    folder: Path
    maps: dict[str, Map]
    say: Callable[[], str]

    def theirs(self, verb: str, name: str, *words: str, json_too: bool = True,
               pretty: bool = False) -> str:
        made = subprocess.run(
            ["bpftool", *(["-p"] if pretty else ["-j"] if json_too else []), "map", verb, "pinned",
             str(self.folder / PINNED.get(name, name)), *words],
            capture_output=True, text=True, check=False)
        return made.stdout

    def ours(self, verb: str, name: str, *words: str, json_too: bool = True) -> str:
        self.say()
        cli.main(["map", verb, "pinned", f"dumped/{name}", *words, *(["-j"] if json_too else [])])
        return self.say()

    def alike(self, verb: str, name: str, *words: str, ordered: bool = True) -> Any:
        """What both tell, in JSON."""
        here, there = (without_ids(name, json.loads(text, object_pairs_hook=tuple))
                       for text in (self.ours(verb, name, *words), self.theirs(verb, name, *words)))
        if not ordered:
            here, there = sorted(here), sorted(there)
        assert here == there, (verb, name, words)
        return here


def without_ids(name: str, told: Any) -> Any:
    """An inner map has another id here, and old versions of bpftool do not tell it twice."""
    if name not in ("outer", "outer_hash") or not isinstance(told, list):
        return told
    return [entry[:1] for entry in told]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
         capsys: pytest.CaptureFixture[str]) -> Iterator[Both]:
    monkeypatch.setenv("XDPU_RUNDIR", str(tmp_path))
    pins = Path(f"/sys/fs/bpf/xdpu_test_{os.getpid()}")
    pins.mkdir()
    run = rundir.create("dumped")
    maps: dict[str, Map] = {}
    try:
        subprocess.run(["bpftool", "prog", "loadall", str(OBJECT), str(pins / "programs"),
                        "pinmaps", str(pins / "maps")], check=True, capture_output=True)
        obj = read_object(OBJECT)
        folder = run.path / "maps"
        folder.mkdir()
        assert obj.btf is not None
        (folder / BTF_NAME).write_bytes(obj.btf.raw)
        for spec in obj.maps:
            maps[spec.name] = Map.create(spec, bpf_syscall.possible_cpus(), folder)
        from xdp_runtime.compiler.map_ops import compile_operations
        for name in ("outer", "outer_hash"):
            compile_operations(maps[name])
            for slot, inner in SPECS[name].slots:
                maps[name].set_inner(slot.to_bytes(4, "little"), maps[inner])
        def say() -> str:
            out, err = capsys.readouterr()
            assert "unexpected" not in err, err
            return out

        yield Both(pins / "maps", maps, say)
    finally:
        for one in maps.values():
            one.close()
        run.remove()
        shutil.rmtree(pins)


def words(part: str, raw: bytes) -> list[str]:
    return [part, "hex", *(f"{byte:02x}" for byte in raw)]


def keys_of(name: str, rng: random.Random) -> list[bytes]:
    spec = SPECS[name]
    if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        return [n.to_bytes(4, "little") for n in range(spec.max_entries)]
    if name == "trie":
        return [bytes([8 * n, 0, 0, 0]) + rng.randbytes(4) for n in range(1, 5)]
    return [rng.randbytes(spec.key_size) for _ in range(4)]


def value_of(name: str, rng: random.Random) -> bytes:
    """Random, but now and then with text, small enumerations and truth in it."""
    raw = bytearray(rng.randbytes(SPECS[name].value_size))
    if len(raw) > 100:
        raw[32] = rng.randrange(2)  # yes
        raw[36:44] = rng.choice((1, 5, -1, 7)).to_bytes(4, "little", signed=True) * 2
        raw[44:52] = rng.choice((b"hello\0\0x", bytes(8), b"tab\t\0\0\0\0", b"quote\"\\\0",
                                 b"full up!"))
        raw[52:56] = b"abc\0"
    elif len(raw) == 8:
        raw[2:8] = rng.choice((b"port\0\0", rng.randbytes(6)))
    elif SPECS[name].type == MapType.LRU_HASH:
        raw[:] = rng.choice((1, 5, -1, 9)).to_bytes(4, "little", signed=True)
    return bytes(raw)


@pytest.mark.parametrize("name", KEYED)
def test_entries(both: Both, name: str) -> None:
    rng = random.Random(name)
    ordered = SPECS[name].type in (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE)
    fixed = SPECS[name].type in (MapType.ARRAY, MapType.PERCPU_ARRAY)
    assert both.alike("dump", name) == [] or fixed
    keys = keys_of(name, rng)
    for key in keys:
        value = value_of(name, rng)
        assert both.alike("update", name, *words("key", key), *words("value", value)) is None
        entry = dict(both.alike("lookup", name, *words("key", key)))
        assert ("formatted" in entry) == (not name.startswith("n_"))
    told = both.alike("dump", name, ordered=ordered)
    assert len(told) == len(keys)
    assert both.ours("lookup", name, *words("key", keys[0]), "-p") .startswith("{\n")
    if ordered:
        both.alike("getnext", name)
        both.alike("getnext", name, *words("key", keys[0]))
    if fixed:
        return
    assert both.alike("delete", name, *words("key", keys[1])) is None
    assert both.alike("lookup", name, *words("key", keys[1])) is None
    assert len(both.alike("dump", name, ordered=ordered)) == len(keys) - 1
    for refused in (("delete", name, *words("key", keys[1])),
                    ("update", name, *words("key", keys[0]),
                     *words("value", value), "noexist"),
                    ("update", name, *words("key", keys[1]),
                     *words("value", value), "exist")):
        assert '"error"' in both.ours(*refused) and '"error"' in both.theirs(*refused), refused


@pytest.mark.parametrize("name", ["n_hash", "n_percpu", "n_16", "n_17", "a_hash", "p_array",
                                  "trie", "cpus", "events"])
def test_text(both: Both, name: str) -> None:
    """It is the same text, too, to the last blank, by types or not; and so is indented JSON."""
    spec, rng = SPECS[name], random.Random(name)
    fixed = spec.type not in (MapType.HASH, MapType.PERCPU_HASH, MapType.LPM_TRIE)
    key = keys_of(name, rng)[0] if not fixed else bytes(4)
    if spec.type not in (MapType.CPUMAP, MapType.PERF_EVENT_ARRAY):
        both.alike("update", name, *words("key", key), *words("value", value_of(name, rng)))
    missing = words("key", bytes([8 * (not fixed), 0, 0, 0]) + b"\xff" * (spec.key_size - 4))
    for verb, *rest in (("dump",), ("lookup", *words("key", key)), ("getnext",),
                        ("lookup", *missing), ("show",)):
        here, there = (say(verb, name, *rest, json_too=False) for say in (both.ours, both.theirs))
        if verb == "show":
            here, there = (re.sub(r"^\d+|memlock \d+|btf_id \d+|\trun.*\n", "", text)
                           for text in (here, there))
        assert here == there, verb
    for verb, *rest in (("dump",), ("lookup", *words("key", key)), ("getnext",)):
        here = both.ours(verb, name, *rest, "-p", json_too=False)
        assert '"error"' in here[:20] or here == both.theirs(verb, name, *rest, pretty=True), verb


def test_words(both: Both) -> None:
    """Numbers as C has them, and the parts of an entry in any order, each once."""
    eight = [*["1", "2", "3", "4", "5", "6", "7"], "010"]
    for given in (["key", "0x1f", "017", "0", "9", "value", *eight],
                  ["noexist", "value", "hex", "0x1", "2", *"3aBcde", "key", *"1111"],
                  ["key", *"1111", "exist", "value", *eight]):
        assert both.alike("update", "n_hash", *given) is None
    both.alike("dump", "n_hash", ordered=False)
    for byte in ("1_0", "0b1", "0o7", "08", "x", "0x", "1.0"):
        for said in (both.ours, both.theirs):
            assert '"error"' in said("lookup", "n_hash", "key", byte, "0", "0", "0"), byte
    key, value = ["key", *"1111"], ["value", *eight]
    for given in ([*key], [*value], [*key, *key, *value], [*key, *value, *value],
                  [*key, *value, "any", "any"], [*key, *value, "some"], [*key, *value, "0"],
                  [*key[:-1], *value], [*key, *value[:-1]], []):
        for said in (both.ours, both.theirs):
            assert '"error"' in said("update", "n_hash", *given), given


@pytest.mark.parametrize("name", ["a_hash", "trie", "p_array"])
def test_value_before_key(both: Both, name: str) -> None:
    rng = random.Random(name)
    key = keys_of(name, rng)[0]
    given = *words("value", value_of(name, rng)), *words("key", key)
    assert both.alike("update", name, *given) is None
    assert both.alike("update", name, *given, "exist") is None
    assert both.alike("lookup", name, *words("key", key)) is not None


@pytest.mark.parametrize("name", ["queue", "stack", "bloom"])
def test_without_keys(both: Both, name: str) -> None:
    """Where there are no keys a lookup is a peek."""
    for verb in ("peek", "lookup"):
        assert both.alike(verb, name) is None
        assert both.ours(verb, name, json_too=False).split() == both.theirs(
            verb, name, json_too=False).split()
    zero = words("value", bytes(SPECS[name].value_size))
    assert both.alike("update", name, *zero) is None
    if name != "bloom":  # bpftool asks a filter for whatever lies in its memory
        assert both.alike("lookup", name) == both.alike("peek", name) is not None
    assert '"error"' in both.ours("getnext", name) and '"error"' in both.theirs("getnext", name)


@pytest.mark.parametrize("name", ["queue", "stack"])
def test_queues(both: Both, name: str) -> None:
    rng = random.Random(name)
    assert both.alike("peek", name) is None and both.alike("pop", name) is None
    push, pop = ("enqueue", "dequeue") if name == "queue" else ("push", "pop")
    for _ in range(3):
        assert both.alike(push, name, *words("value", value_of(name, rng))) is None
    full = (push, name, *words("value", bytes(SPECS[name].value_size)))
    assert '"error"' in both.ours(*full) and '"error"' in both.theirs(*full)
    assert both.alike("dump", name) == []
    seen = [both.alike("peek", name)]
    seen += [both.alike(pop, name) for _ in range(3)]
    assert seen[0] == seen[1] and len({str(one) for one in seen}) == 3
    assert both.alike(pop, name) is None


@pytest.mark.parametrize("name", ["outer", "outer_hash", "progs", "devs", "dev_hash", "cpus",
                                  "stacks", "bloom", "ring", "user_ring", ".data", ".bss",
                                  ".rodata", "events"])
def test_dump(both: Both, name: str) -> None:
    told = both.alike("dump", name)
    assert bool(told) == (name in ("outer", "outer_hash", "devs", "cpus", ".data", ".bss",
                                   ".rodata", "events"))


def test_targets(both: Both) -> None:
    for name in ("devs", "dev_hash"):
        both.alike("update", name, "key", "1", "0", "0", "0", "value", "1", "0", "0", "0")
        both.alike("lookup", name, "key", "1", "0", "0", "0")
        both.alike("dump", name)
        both.alike("getnext", name)


def test_inner_maps_by_id(both: Both) -> None:
    for name in ("outer", "outer_hash"):
        for entry in json.loads(both.ours("dump", name)):
            inner = "in_two" if entry["key"] != ["0x00"] * 4 else "in_one"
            assert entry["inner_map_id"] == json.loads(both.ours("show", inner))["id"]
            assert entry["value"] == [
                f"0x{byte:02x}" for byte in entry["inner_map_id"].to_bytes(4, "little")]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_show(both: Both, name: str) -> None:
    here, there = (json.loads(text) for text in (both.ours("show", name),
                                                 both.theirs("show", name)))
    assert list(here) == [*there, "run", "workers"]
    for key in set(there) - {"id", "bytes_memlock", "btf_id", "name"}:
        assert here[key] == there[key], key
    assert (here["name"] == there["name"]) or name.startswith(".")


def test_freeze(both: Both) -> None:
    update = ("a_hash", *words("key", bytes(8)), *words("value", bytes(160)))
    assert both.alike("update", *update) is None and both.alike("freeze", "a_hash") is None
    assert '"error"' in both.ours("update", *update) and '"error"' in both.theirs("update", *update)
    assert json.loads(both.ours("show", "a_hash"))["frozen"] == json.loads(
        both.theirs("show", "a_hash"))["frozen"] == 1
    assert len(both.alike("dump", "a_hash")) == 1
