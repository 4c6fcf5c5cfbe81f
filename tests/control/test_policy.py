"""xdpu policy, and --class where programs are loaded."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from control import cli
from tests.control.run_xdpu import EXAMPLES

CLASSES = str(EXAMPLES / "policy" / "classes.yaml")
COUNTER, FIREWALL = str(EXAMPLES / "counter.o"), str(EXAMPLES / "firewall.o")
OBSERVE = ["--class", "observe", "--policy", CLASSES]
PACKET = "hex:" + "00" * 64


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "policy", "check", COUNTER, *OBSERVE) == (
        0, "counter, class observe: keeps to it\n", "")
    code, out, _ = ask(capsys, "policy", "check", FIREWALL, *OBSERVE)
    assert code == 4
    assert "reads the packet up to byte 78" in out and "may return XDP_DROP" in out
    assert "(grant `verdicts: [XDP_DROP]`)" in out
    assert out.splitlines()[-1] == "firewall, class observe: lacks 5 grants"


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "policy", "check", FIREWALL, *OBSERVE, "-j")
    answer = json.loads(out)
    assert code == 4 and not answer["ok"] and len(answer["missing"]) == 5
    first = answer["missing"][0]
    assert (first["kind"], first["amount"], first["file"].rsplit("/", 1)[-1]) == (
        "packet.read", 78, "ports.h")
    assert first["mend"] == "grant `packet: {read: 78}`"
    code, out, _ = ask(capsys, "policy", "check", COUNTER, *OBSERVE, "-j")
    assert (code, json.loads(out)["ok"]) == (0, True)


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "policy", "explain", FIREWALL, "--class", "firewall",
                       "--policy", CLASSES)
    assert code == 0
    assert "packet: {read: 128}\n    firewall: instruction " in out
    assert "instructions: 500\n    firewall, longest path " in out
    code, out, _ = ask(capsys, "policy", "explain", str(EXAMPLES / "pass.o"), *OBSERVE)
    assert code == 0 and "helpers: [map_lookup_elem]    not used" in out
    code, out, _ = ask(capsys, "policy", "explain", FIREWALL, *OBSERVE)
    assert code == 4 and "\nmissing: firewall: instruction" in out
    code, out, _ = ask(capsys, "policy", "explain", COUNTER, "-j")
    grants = {row["grant"]: row["uses"] for row in json.loads(out)["grants"]}
    assert code == 0 and len(grants["maps: {counters: [write]}"]) == 2
    assert all(grants.values())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.o")), ids=lambda p: p.stem)
def test_infer_then_check(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "policy", "infer", str(path))
    assert code == 0
    file = tmp_path / "inferred.yaml"
    file.write_text(out)
    assert ask(capsys, "policy", "check", str(path), "--policy", str(file))[0] == 0
    code, out, _ = ask(capsys, "policy", "infer", str(path), "--class", "mine", "-j")
    assert code == 0 and json.loads(out)["class"]["name"] == "mine"


def test_xdpu_check_knows_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "check", COUNTER, *OBSERVE)[0] == 0
    code, out, _ = ask(capsys, "check", FIREWALL, *OBSERVE, "-j")
    (program,) = json.loads(out)["programs"].values()
    assert code == 4 and len(program["errors"]) == 5
    assert {error["kind"] for error in program["errors"]} == {"policy"}


@pytest.mark.parametrize("verb", [
    ["run", FIREWALL, "--pcap", "/dev/null"], ["run", FIREWALL, "--iface", "none0"],
    ["prog", "run", FIREWALL, "--data-in", PACKET],
    ["prog", "run", FIREWALL, "--data-in", PACKET, "--engine", "interp"],
    ["prog", "run", FIREWALL, "--data-in", PACKET, "--engine", "kernel"],
    ["dump", FIREWALL], ["dump", FIREWALL, "--what", "native"],
], ids=lambda verb: " ".join(word for word in verb if not word.startswith("/")))
def test_loading_refuses(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before a packet, an interface or the kernel is touched."""
    code, out, err = ask(capsys, *verb, *OBSERVE)
    assert (code, out) == (4, "")
    assert err.startswith("xdpu: firewall: instruction ") and "4 more" in err
    assert "class observe grants only its first 64 bytes" in err


def test_loading_accepts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, "prog", "run", COUNTER, "--data-in", PACKET, *OBSERVE)
    assert code == 0 and out.startswith("Return value: 2,")
    code, _, err = ask(capsys, "run", COUNTER, "--pcap", "/dev/null", *OBSERVE)
    assert code == 3 and "/dev/null" in err  # so far it came


def test_a_class_costs_nothing_at_run_time(capsys: pytest.CaptureFixture[str]) -> None:
    """The same machine code, to the byte."""
    bound = ask(capsys, "dump", COUNTER, "--what", "native", *OBSERVE)
    assert bound[0] == 0 and bound == ask(capsys, "dump", COUNTER, "--what", "native")


@pytest.mark.parametrize(("argv", "says"), [
    (["--class", "observe"], "--class: goes with --policy"),
    (["--policy", CLASSES], "has several classes (--class one of: observe, firewall, forward)"),
    (["--class", "spy", "--policy", CLASSES], "class 'spy': is not in"),
    (["--policy", "/none.yaml"], "/none.yaml: No such file or directory"),
    ([], "no policy given (--policy FILE, and --class NAME)"),
    (["--class", "observe", "--policy", str(EXAMPLES / "policy" / "web-classes.yaml")],
     "cannot be bound to entries in processes yet"),
])
def test_usage(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ask(capsys, "policy", "check", COUNTER, *argv)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = EXAMPLES / "policy"
    web = str(tmp_path / "web")
    try:
        subprocess.run(["gcc", "-g", "-o", web, folder / "web.c"], check=True)
    except FileNotFoundError:
        pytest.skip("needs gcc")
    code, out, _ = ask(capsys, "policy", "host", str(folder / "web.yaml"), "--binary", web)
    assert code == 0 and "agrees" in out
    spec = tmp_path / "drifted.yaml"
    spec.write_text((folder / "web.yaml").read_text().replace("web_now", "web_then"))
    code, out, _ = ask(capsys, "policy", "host", str(spec), "--binary", web)
    assert code == 4 and f"drifted.yaml:12: now: {web} has no function web_then" in out
    code, out, _ = ask(capsys, "policy", "host", str(spec), "--binary", web, "-j")
    assert code == 4 and json.loads(out)["wrong"][0]["name"] == "now"
    code, out, _ = ask(capsys, "policy", "host", "--binary", web)
    spec.write_text(out)
    assert code == 0
    assert ask(capsys, "policy", "host", str(spec), "--binary", web)[0] == 0
