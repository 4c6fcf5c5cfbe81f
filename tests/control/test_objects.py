"""Options of all verbs that read an object: --set-global, --map-entries and --btf."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from control import cli

OF_RUNTIME = Path(__file__).parents[1] / "xdp_runtime" / "objects"
GLOBALS, CORE = OF_RUNTIME / "globals.o", OF_RUNTIME / "relocations.o"
SIZED = Path(__file__).with_name("objects") / "sized.o"
PACKET = f"hex:{bytes(64).hex()}"


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What it printed, or the error's message."""
    cli.main(argv)
    out, err = capsys.readouterr()
    return out or err


def steps(capsys: pytest.CaptureFixture[str], *argv: str) -> int:
    said = json.loads(ask(capsys, "check", str(GLOBALS), "-n", "xdp_globals", "-j", *argv))
    return int(said["programs"]["xdp_globals"]["steps"])


def test_a_constant_excludes_branches(capsys: pytest.CaptureFixture[str]) -> None:
    setting = 'settings={"limit": 4294967295, "name": "core"}'
    assert steps(capsys, "--set-global", setting) < steps(capsys)


def test_variables_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict depends on whether squares and an element of `table` come to an odd sum."""
    runs = [ask(capsys, "prog", "run", str(GLOBALS), "--data-in", PACKET, "--engine", "interp",
                "--set-global", "settings={\"limit\": 100}", *argv)
            for argv in ([], ["--set-global", "table=[0,0,0,0]", "--set-global", "recent=[0, 0]"])]
    assert [text.split(",")[0] for text in runs] == ["Return value: 2", "Return value: 1"]
    out = tmp_path / "out.o"
    assert cli.main(["aot", str(GLOBALS), "--set-global", "seen=0x10", "-o", str(out)]) == 0


@pytest.mark.parametrize(("setting", "message"), [
    ("seen", "--set-global seen: is no variable's value (write NAME=VALUE, such as mode=3"),
    ("seen=-1", "global variable seen: -1 does not fit in an unsigned 64-bit integer"),
    ("unseen=1", "global variable unseen: not in globals.o (it has: dropped, hidden"),
    ("recent=much", "global variable recent: expected a list, not 'much'"),
])
def test_what_is_no_value(setting: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(GLOBALS), "--set-global", setting]) == 2
    assert message in capsys.readouterr().err


def test_sizes_of_maps(capsys: pytest.CaptureFixture[str]) -> None:
    """What the object leaves open is refused with the option that says it."""
    def run(*argv: str) -> str:
        return ask(capsys, "prog", "run", str(SIZED), "--data-in", PACKET, "--engine", "interp",
                   *argv)

    assert "such as --map-entries counts=1024" in ask(
        capsys, "prog", "run", str(SIZED), "--data-in", PACKET)
    assert "refused when it is loaded: map counts: max_entries is 0 (say what its loader would" in \
        ask(capsys, "check", str(SIZED))
    runs = [run("--map-entries", f"counts={n}") for n in (3, 4)]
    assert [text.split(",")[0] for text in runs] == ["Return value: 1", "Return value: 2"]


@pytest.mark.parametrize(("entries", "message"), [
    ("counts", "--map-entries counts: is no map's number of entries (write NAME=N"),
    ("count=4", "map count: not in sized.o (it has: counts)"),
    ("counts=0", "map counts: cannot have 0 entries (give a number from 1 to 4294967295)"),
])
def test_what_is_no_size(entries: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(SIZED), "--map-entries", entries]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--set-global", "--map-entries"])
def test_no_option_is_ignored(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the object is shown as it is in the file."""
    assert cli.main(["dump", str(SIZED), "--what", "asm", option, "absent=1"]) == 2
    assert "absent: not in sized.o" in capsys.readouterr().err


def test_types_of_another_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ELF file with BTF will do: here the object itself."""
    text = ask(capsys, "dump", str(CORE), "--btf", str(CORE))
    assert "xdp" in text
    none = tmp_path / "none.btf"
    assert cli.main(["check", str(CORE), "--btf", str(none)]) == 4
    assert f"{none}: no such file or directory" in capsys.readouterr().err
