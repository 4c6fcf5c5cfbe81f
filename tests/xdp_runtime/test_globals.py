"""Global variables set before an object is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xdp_runtime.test_elf import load
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.globals import with_globals
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load as load_program
from xdp_runtime.verifier.report import verify

OBJECT = Path(__file__).parent / "objects" / "globals.o"


def test_values_by_name_and_type() -> None:
    obj = with_globals(read_object(OBJECT), {
        "settings": {"limit": 1000, "ports": [1, 2], "name": "core", "strict": True, "bias": -7},
        "seen": 5, "own": 0, "dropped": 2**64 - 1, "recent": [9]})
    with load_program(obj) as program:
        values = {name: program.maps[name][0] for name in (".rodata", ".data", ".bss", ".data.own")}
    settings = values[".rodata"]["settings"]
    assert (settings["limit"], settings["ports"], settings["bias"]) == (1000, [1, 2, 0], -7)
    assert settings["name"].rstrip(b"\0") == b"core"
    assert values[".data"]["seen"] == 5
    assert values[".data.own"]["own"] == 0
    assert (values[".bss"]["dropped"], values[".bss"]["recent"]) == (2**64 - 1, [9, 0, 0, 0])


def test_the_object_stays_as_it_was() -> None:
    obj = read_object(OBJECT)
    changed = with_globals(obj, {"seen": 1})
    assert obj == read_object(OBJECT) != changed
    assert with_globals(obj, {}) is obj


@pytest.mark.root
def test_all_engines_see_them_and_excluded_branches_go() -> None:
    """What is longer than settings.limit is dropped and counted; of a limit that no packet exceeds
    nothing is left to verify."""
    obj = read_object(OBJECT)
    for limit in (7, 2**32 - 1):
        one = with_globals(obj, {"settings": {"limit": limit}, "dropped": 40})
        dropped = 41 if limit == 7 else 40
        with load_program(one) as program:
            compiled = program.run(bytes(64)).retval
            assert program.maps[".bss"][0]["dropped"] == dropped
        assert Machine(one, one.program()).run(bytes(64)).r0 == compiled
        with load_into_kernel(one) as kernel:
            assert kernel.run(bytes(64)).retval == compiled
    few, many = (verify(with_globals(obj, {"settings": {"limit": n}}), obj.program()).steps
                 for n in (2**32 - 1, 7))
    assert few < many


@pytest.mark.parametrize(("name", "value", "message"), [
    ("nothing", 1, r"global variable nothing: not in globals.o \(it has: .*seen.*\)"),
    ("seen", -1, "global variable seen: -1 does not fit in an unsigned 64-bit integer"),
    ("seen", "x", "global variable seen: expected an integer, not 'x'"),
    ("recent", [1, 2, 3, 4, 5], "5 elements do not fit in 4"),
    ("settings", {"limits": 1}, "no member named limits"),
    ("settings", {"name": "much too long"}, "13 bytes do not fit in 8"),
])
def test_what_does_not_fit(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_globals(read_object(OBJECT), {name: value})


def test_without_btf() -> None:
    with pytest.raises(ConfigError, match=r"has no BTF to find it by \(compile with -g\)"):
        with_globals(load("legacy_nobtf"), {"seen": 1})
