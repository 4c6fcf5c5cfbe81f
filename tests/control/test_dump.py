"""xdpu dump: each stage of each example, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest

from control import cli
from tests.control.run_xdpu import EXAMPLES, OBJECTS

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.o"))


def dump(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["dump", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("example", NAMES)
def test_bytecode_and_graph(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = dump(capsys, f"{EXAMPLES}/{example}.o")
    assert re.search(r"^ +0: ", text, re.M) and f"@ {example}.c:" in text
    graph = dump(capsys, f"{EXAMPLES}/{example}.o", "--what", "cfg")
    assert graph.startswith("digraph ") and graph.count("{") == graph.count("}")


@pytest.mark.parametrize("opt", ["0", "3"])
@pytest.mark.parametrize("example", ["tx", "flow_table", "dispatcher"])
def test_ir_and_machine_code(example: str, opt: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{EXAMPLES}/{example}.o"
    ir = dump(capsys, path, "--what", "ir", "--opt", opt)
    assert re.search(rf"^define [^@]*@{example}\(ptr", ir, re.M)
    native = dump(capsys, path, "--what", "native", "--opt", opt)
    assert f"{example}:" in native and "ret" in native


def test_lowered_ir_still_has_its_calls(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{EXAMPLES}/flow_table.o"
    lowered = dump(capsys, path, "--what", "ir", "--stage", "lowered")
    optimised = dump(capsys, path, "--what", "ir")
    assert 'call i32 @"prog.0"' in lowered or "call i32 @prog.0" in lowered
    assert "call i32 @prog.0" not in optimised.replace(chr(34), "")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(dump(capsys, f"{EXAMPLES}/drop.o", "-j"))
    assert answer["program"] == "drop" and "exit" in answer["text"]


def test_a_named_program(capsys: pytest.CaptureFixture[str]) -> None:
    text = dump(capsys, f"{EXAMPLES}/dispatcher.o", "-n", "handle_arp")
    assert text.startswith("handle_arp:")


def test_what_is_not_xdp_has_bytecode_only(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{OBJECTS}/kprobe.o"
    assert "exit" in dump(capsys, path, "-n", "on_schedule")
    assert cli.main(["dump", path, "-n", "on_schedule", "--what", "ir"]) == 4
    assert capsys.readouterr().err == (
        "xdpu: program on_schedule: section 'kprobe/schedule' is not XDP "
        '(put it in SEC("xdp"))\n')
