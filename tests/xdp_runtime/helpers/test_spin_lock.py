"""The lock in a map's value: interpreted = compiled = the kernel, across threads and processes."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.interp import Machine
from xdp_runtime.maps.family import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from xdp_runtime.maps.map import Map
from xdp_runtime.program import load

OBJECT = Path(__file__).with_name("locks.o")
VALUE = struct.Struct("<IIQQ")
LOCK_AT = 4


def commands(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [struct.pack("<IIQQqQQ", rng.randrange(4), rng.randrange(6),
                        rng.choice((0, 1, 2, 4, 5, 6, 7, 8, 1 << 33)), rng.randrange(100), 9, 9, 9)
            for _ in range(300)]


def interpreted(seed: int) -> tuple[list[tuple[int, bytes]], dict[str, dict[bytes, bytes]]]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("locks"))
    runs = [machine.run(packet) for packet in commands(seed)]
    return ([(run.verdict, run.data_out) for run in runs],
            {m.spec.name: dict(m.items()) for m in machine.maps if m.spec.name != "lru"})


def test_place_of_the_lock() -> None:
    assert {m.name: m.lock_at for m in read_object(OBJECT).maps} == {
        "hash": LOCK_AT, "lru": LOCK_AT, "array": LOCK_AT, ".bss": 8}


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(opt: int) -> None:
    for seed in range(3):
        expected, contents = interpreted(seed)
        with load(read_object(OBJECT), "locks", opt=opt) as program:
            for number, (packet, one) in enumerate(zip(commands(seed), expected, strict=True)):
                run = program.run(packet)
                assert (run.retval, run.data_out) == one, (seed, number, packet[:16].hex())
            for name, items in contents.items():
                assert dict(program.raw_maps[name].items()) == items


@pytest.mark.root
@needs_bpf()[1]
def test_kernel(tmp_path: Path) -> None:
    """bpftool, as the kernel wants the types of the values."""
    where = f"/sys/fs/bpf/xdpu-test-locks-{os.getpid()}"
    maps = Path(where + "-maps")
    subprocess.run(["bpftool", "prog", "loadall", OBJECT, where, "pinmaps", maps], check=True)
    try:
        expected, _ = interpreted(5)
        for packet, one in list(zip(commands(5), expected, strict=True))[:120]:
            (tmp_path / "in").write_bytes(packet)
            out = subprocess.run(
                ["bpftool", "-j", "prog", "run", "pinned", where + "/locks", "data_in",
                 tmp_path / "in", "data_out", tmp_path / "out"], check=True, capture_output=True)
            verdict = int(out.stdout.split(b'"retval":')[1].split(b",")[0])
            assert (verdict, (tmp_path / "out").read_bytes()) == one, packet[:16].hex()
    finally:
        for directory in (Path(where), maps):
            for one_file in directory.iterdir():
                one_file.unlink()
            directory.rmdir()


def key(number: int) -> bytes:
    return number.to_bytes(4, "little")


@pytest.mark.parametrize("name", ["hash", "lru", "array"])
def test_user_space(name: str) -> None:
    """The lock reads as zero, updates leave it alone, BPF_F_LOCK changes a value in place."""
    with load(read_object(OBJECT), "locks") as program:
        one = program.raw_maps[name]
        garbage = VALUE.pack(1, 0xABCD, 2, 4)
        one.update(key(1), garbage)
        assert one.lookup(key(1)) == VALUE.pack(1, 0, 2, 4)
        assert one.lookup(key(1), BPF_F_LOCK) == VALUE.pack(1, 0, 2, 4)
        address = one._operation("peek")(0, key(1))
        one.update(key(1), VALUE.pack(7, 0x1234, 8, 9), BPF_F_LOCK)
        assert one._operation("peek")(0, key(1)) == address
        assert one.lookup(key(1)) == VALUE.pack(7, 0, 8, 9)
        if name != "array":
            one.update(key(2), garbage, BPF_F_LOCK | BPF_NOEXIST)
            assert one.lookup(key(2)) == VALUE.pack(1, 0, 2, 4)
            with pytest.raises(FileNotFoundError):
                one.update(key(3), garbage, BPF_F_LOCK | BPF_EXIST)
            assert one.lookup(key(3), BPF_F_LOCK) is None
        with pytest.raises(FileExistsError):
            one.update(key(1), garbage, BPF_F_LOCK | BPF_NOEXIST)
        with pytest.raises(OSError) as refused:
            one.lookup(key(1), 1)
        assert refused.value.errno == errno.EINVAL


def test_without_a_lock() -> None:
    obj = read_object(Path(__file__).with_name("dynptrs.o"))
    with load(obj, "local") as program:
        for call in (lambda m: m.lookup(key(0), BPF_F_LOCK),
                     lambda m: m.update(key(0), bytes(64), BPF_F_LOCK)):
            with pytest.raises(OSError) as refused:
                call(program.raw_maps["memory"])
            assert refused.value.errno == errno.EINVAL


def start_counting(program: Any, maps: list[Map]) -> None:
    for one in maps:
        one.update(key(1), VALUE.pack(0, 0, 0, 0))


def test_threads_and_another_process(tmp_path: Path) -> None:
    """Two workers count, a reader sees both numbers of a value agree; nothing is lost."""
    rounds, done, enough = 20_000, [0, 0], threading.Event()

    def work(worker: int) -> None:
        while not enough.is_set():
            program.repeat(bytes(64), rounds, worker=worker)
            done[worker] += rounds

    with load(read_object(OBJECT), "count", workers=2, directory=tmp_path) as program:
        maps = [program.raw_maps["array"], program.raw_maps["hash"]]
        start_counting(program, maps)
        with Map.open(tmp_path / "hash") as other:
            assert other.spec.lock_at == LOCK_AT
        threads = [threading.Thread(target=work, args=(w,)) for w in range(2)]
        for thread in threads:
            thread.start()
        for look in range(1000):
            value = maps[look & 1].lookup(key(1), BPF_F_LOCK)
            assert isinstance(value, bytes)
            _, lock, count, twice = VALUE.unpack(value)
            assert (lock, twice) == (0, 2 * count)
        enough.set()
        for thread in threads:
            thread.join()
        for one in maps:
            assert one.lookup(key(1)) == VALUE.pack(0, 0, sum(done), 2 * sum(done))
        assert min(done) > 0


def test_threads_at_a_global_lock() -> None:
    """It is in the value of .bss, so user space reads what it guards with BPF_F_LOCK."""
    obj, rounds = read_object(OBJECT), 20_000
    machine = Machine(obj, obj.program("count_globally"))
    assert machine.run(bytes(64)).verdict == 2
    model = next(m for m in machine.maps if m.spec.name == ".bss")
    assert dict(model.items()) == {bytes(4): struct.pack("<QI4xQ", 1, 0, 2)}
    with load(obj, "count_globally", workers=2) as program:
        threads = [threading.Thread(target=program.repeat, args=(bytes(64), rounds),
                                    kwargs={"worker": worker}) for worker in range(2)]
        for thread in threads:
            thread.start()
        one = program.raw_maps[".bss"]
        for _ in range(200):
            value = one.lookup(key(0), BPF_F_LOCK)
            assert isinstance(value, bytes)
            count, lock, twice = struct.unpack("<QI4xQ", value)
            assert (lock, twice) == (0, 2 * count)
        for thread in threads:
            thread.join()
        assert one.lookup(key(0)) == struct.pack("<QI4xQ", 2 * rounds, 0, 4 * rounds)


def test_a_dead_owner_does_not_stop_anybody() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with load(read_object(OBJECT), "count") as program:
        maps = [program.raw_maps["array"], program.raw_maps["hash"]]
        start_counting(program, maps)
        word = maps[0].memory("values")
        word[24 + LOCK_AT:24 + LOCK_AT + 4] = child.pid.to_bytes(4, "little")
        started = time.monotonic()
        assert program.run(bytes(64)).retval == 2
        assert time.monotonic() - started < 5
        assert maps[0].lookup(key(1)) == VALUE.pack(0, 0, 1, 2)
        assert bytes(word[24 + LOCK_AT:24 + LOCK_AT + 4]) == bytes(4)
        word.release()


def test_pointers_to_kernel_objects_are_refused() -> None:
    with pytest.raises(LoadError, match=r"tasks.*pointer to an object of the kernel \(task\)"):
        read_object(Path(__file__).with_name("kptr.o"))


def named(tag: str, field: str) -> bytes:
    """The object with other names in place of its longest ones."""
    raw = Path(__file__).with_name("special.o").read_bytes()
    for was, name in ((b"kptr_untrusted\0", tag), (b"bpf_res_spin_lock\0", field)):
        assert raw.count(was) == 1
        raw = raw.replace(was, name.encode().ljust(len(was), b"\0"))
    return raw


@pytest.mark.parametrize("tag", ["kptr", "kptr_untrusted", "percpu_kptr", "uptr"])
def test_pointers_by_every_tag_are_refused(tag: str) -> None:
    with pytest.raises(LoadError, match=r"map pointers: .* object of the kernel \(task\)"):
        read_object(named(tag, "plain"))


@pytest.mark.parametrize("field", ["bpf_res_spin_lock", "bpf_wq", "bpf_task_work", "bpf_list_head",
                                   "bpf_rb_root", "bpf_refcount"])
def test_fields_without_functions_are_refused(field: str) -> None:
    with pytest.raises(LoadError, match=f"map fields: its values hold a struct {field}, whose"):
        read_object(named("other", field))


def test_other_tags_and_structs_are_nothing_special() -> None:
    with load(read_object(named("other", "plain"))) as program:
        assert program.run(bytes(64)).retval == 1
