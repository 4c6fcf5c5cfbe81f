"""By which compile a program is loaded, and that its code can be changed while it has state."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest

from tests.xdp_runtime.families.test_families import (
    OBJECT,
    PROGRAMS,
    commands,
    outcomes_interpreted,
)
from xdp_runtime import repeat
from xdp_runtime.compiler import link, target, templates
from xdp_runtime.compiler.image import Image
from xdp_runtime.compiler.tiers import Tiers
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.object import Object
from xdp_runtime.program import load

UNITS = (repeat.UNIT,)
LONG_S = 120


@pytest.fixture
def obj() -> Object:
    return read_object(OBJECT)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obj: Object) -> Path:
    """A cache without machine code; templates come from the other one."""
    needed = link.lower(obj, obj.program("tries"), 1, UNITS).templates.values()
    every = templates.closure([*needed, *repeat.UNIT.templates])
    found = {templates.entry_name(t): templates.bitcode(t) for t in every}
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(templates, "bitcode", lambda t: found[templates.entry_name(t)])
    return tmp_path / "cache"


def begin(tiers: Tiers, obj: Object, opt: int = 3) -> Image:
    return tiers.begin(obj, obj.program("tries"), 1, opt, UNITS, None)


def optimised(tiers: Tiers) -> Image | None:
    assert select.select([tiers.ended], [], [], LONG_S)[0]
    return tiers.optimised()


def test_cold_begins_with_baseline_and_warm_does_not(obj: Object, empty: Path) -> None:
    with Tiers(True) as tiers:
        first = begin(tiers, obj)
        assert first.pipeline == target.pipeline(target.BASELINE, 0) and first is tiers.image
        assert tiers.compile(obj, obj.program("tries"), 1, 3, UNITS, None) is first
        after = optimised(tiers)
        assert after is not None and after.pipeline == "O3" and not after.from_cache
        assert after.compile_s > first.compile_s > 0
        assert tiers.ended == -1 and tiers.optimised() is None
    with Tiers(True) as tiers:
        assert begin(tiers, obj) == after
        assert begin(tiers, obj).from_cache and tiers.image is None and tiers.ended == -1


def test_what_does_not_begin_with_baseline(obj: Object, empty: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, opt, slots in ((False, 3, target.PLAIN_SLOTS), (True, 0, target.PLAIN_SLOTS),
                               (True, 3, 10)):
        monkeypatch.setattr(target, "PLAIN_SLOTS", slots)
        with Tiers(wanted) as tiers:
            assert begin(tiers, obj, opt).pipeline == target.pipeline(opt, 11)
            assert tiers.image is None and tiers.ended == -1
        for path in empty.glob("program-*"):
            path.unlink()


def test_what_is_asked_for_later_is_compiled_at_once(obj: Object, empty: Path) -> None:
    with Tiers(True) as tiers:
        first = begin(tiers, obj)
        other = tiers.compile(obj, obj.program("tries"), 2, 3, UNITS, None)
        assert other.pipeline == "O3" and tiers.image is first


def test_optimised_code_comes_without_a_cache_too(
        obj: Object, empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty.write_text("a file where the directory should be")
    with Tiers(True) as tiers:
        begin(tiers, obj)
        image = optimised(tiers)
        assert image is not None and image.pipeline == "O3"
    assert "compile cache" in capfd.readouterr().err


def test_a_compiler_that_fails_is_told_once(obj: Object, empty: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Image:
        raise RuntimeError("LLVM did not compile this module")

    monkeypatch.setattr(link, "compile_lowered", fails)
    with Tiers(True) as tiers:
        begin(tiers, obj)
        with pytest.raises(XdpuError, match="did not compile"):
            optimised(tiers)
        assert tiers.optimised() is None and tiers.image is None


def test_closing_ends_the_compiler(obj: Object, empty: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "compile_lowered", lambda *_: time.sleep(600))
    with Tiers(True) as tiers:
        begin(tiers, obj)
        assert tiers.optimised() is None
        (child,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_goes_on_by_other_code_where_it_was(name: str, obj: Object) -> None:
    """Every other stretch by baseline code: one history of its maps, the interpreter's."""
    spec = obj.program(name)
    images = [link.compile_program(obj, spec, 1, opt, UNITS) for opt in (target.BASELINE, 3)]
    found, sent = [], commands(4)
    with load(obj, name, opt=target.BASELINE) as program:
        memory = [m.symbols() for m in program.all_maps]
        for number in range(0, len(sent), 50):
            former = program.recode(images[number // 50 % 2])
            found += [program.run(packet) for packet in sent[number:number + 50]]
            former.close()
        assert program.image is images[(len(sent) - 1) // 50 % 2]
        assert [m.symbols() for m in program.all_maps] == memory
    assert [(one.retval, one.data_out) for one in found] == outcomes_interpreted(name, 4)
