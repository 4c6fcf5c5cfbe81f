"""xdpu prog run: three engines, one answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from control import cli, prog
from tests.control.run_xdpu import EXAMPLES, OBJECTS, xdpu
from tests.packets import OUR_MAC, PEER_MAC
from tests.privileges import needs_bpf

ENGINES = ["jit", "interp", pytest.param("kernel", marks=needs_bpf())]
PING = bytes.fromhex("0200000000020200000000010800" "4500001c0001000040010edf" "0a0000010a000002"
                     "0800e5ca00070001" + "00" * 22)


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert cli.main(["prog", "run", *argv, "-j"]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("example", "retval"), [("drop", 1), ("pass", 2), ("tx", 3)])
def test_engines_agree(engine: str, example: str, retval: int,
                       capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, f"{EXAMPLES}/{example}.o", "--data-in", f"hex:{PING.hex()}", "--engine",
                 engine)
    expected = PING[6:12] + PING[:6] + PING[12:] if example == "tx" else PING
    assert (answer["retval"], answer["data_out"]) == (retval, expected.hex())
    assert isinstance(answer["duration"], int | float) and set(answer) == {
        "retval", "data_out", "duration"}


@pytest.mark.parametrize("engine", ENGINES)
def test_ping_is_answered_alike(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    s = pytest.importorskip("scapy.all")
    ping = bytes(s.Ether(dst=OUR_MAC, src=PEER_MAC) / s.IP(src="10.0.0.1", dst="10.0.0.2")
                 / s.ICMP(id=7, seq=1) / b"abcdefgh")
    answer = ask(capsys, f"{EXAMPLES}/icmp_echo.o", "--data-in", f"hex:{ping.hex()}", "--engine",
                 engine)
    reply = s.Ether(bytes.fromhex(str(answer["data_out"])))
    assert answer["retval"] == 3
    assert (reply.dst, reply[s.IP].dst, reply[s.ICMP].type) == (PEER_MAC, "10.0.0.1", 0)
    summed = reply[s.ICMP].chksum
    del reply[s.ICMP].chksum
    assert s.Ether(bytes(reply))[s.ICMP].chksum == summed


@pytest.mark.parametrize("engine", ENGINES)
def test_map_entries_and_interface(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    redirect = f"{EXAMPLES}/redirect.o"
    packet = ["--data-in", f"hex:{PING.hex()}", "--engine", engine, "--ifindex", "1"]
    assert ask(capsys, redirect, *packet)["retval"] == 2
    assert ask(capsys, redirect, *packet, "--set-map", "peer=1:9")["retval"] == 4
    assert cli.main(["prog", "run", redirect, *packet, "--set-map", "nomap=1:9"]) == 2


def test_repeat_is_in_compiled_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Five million runs in CPython would take minutes."""
    answer = ask(capsys, f"{EXAMPLES}/tx.o", "--data-in", f"hex:{PING.hex()}", "--repeat",
                 "5000000")
    assert answer["retval"] == 3 and float(str(answer["duration"])) < 10_000
    assert answer["data_out"] == (PING[6:12] + PING[:6] + PING[12:]).hex(), "each on a fresh packet"


def test_text_is_bpftools(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prog", "run", f"{EXAMPLES}/drop.o", "--data-in", f"hex:{PING.hex()}",
                     "--repeat", "10"]) == 0
    assert re.fullmatch(r"Return value: 1, duration \(average\): [\d.]+ns\n",
                        capsys.readouterr().out)


def test_files_and_pipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(PING)
    argv = ["prog", "run", f"{EXAMPLES}/pass.o", "--data-out"]
    assert cli.main([*argv, str(out), "--data-in", str(source)]) == 0
    assert out.read_bytes() == PING
    capsys.readouterr()
    assert cli.main([*argv, "-", "--data-in", str(source)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("0000: 02 00 00 00 00 02 ") and last.startswith("Return value: 2")
    done = xdpu(*argv, str(out), "--data-in", "-", stdin=PING[:40])
    assert done.returncode == 0 and out.read_bytes() == PING[:40]
    assert cli.main([*argv, "/nowhere/out", "--data-in", str(source)]) == 3


def test_hex_lines() -> None:
    assert prog.hex_lines(b"A\x00" * 9) == (
        "0000: 41 00 41 00 41 00 41 00 41 00 41 00 41 00 41 00  A.A.A.A.A.A.A.A.\n"
        "0010: 41 00                                            A.\n")


REFUSAL = (
    "xdpu: xdp_fault: instruction 1 (fault.c:10: return data[1000] ? XDP_DROP : XDP_PASS;): "
    "1 byte at offset 1000 of the packet is not proven to exist (proven: 0 bytes) "
    "(check `data + 1001 <= data_end` before this access)\n")


def test_an_unproven_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prog", "run", f"{OBJECTS}/fault.o", "--data-in", f"hex:{PING.hex()}"]
    assert cli.main(argv) == 4
    said = capsys.readouterr()
    assert said.out == "" and said.err == REFUSAL
    assert cli.main([*argv, "-v"]) == 4
    assert capsys.readouterr().err == "known: r1=a packet pointer\n" + REFUSAL


def test_the_interpreter_says_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """It judges nothing beforehand."""
    argv = ["prog", "run", f"{OBJECTS}/fault.o", "--data-in", f"hex:{PING.hex()}"]
    place = "instruction 1 (return data[1000] ? XDP_DROP : XDP_PASS; @ fault.c:10)"
    assert cli.main([*argv, "--engine", "interp"]) == 4
    assert capsys.readouterr().err == (
        f"xdpu: program xdp_fault: the interpreter stopped at {place}, out of bounds: 1 bytes at "
        f"1000 of the packet, which has {len(PING)}\n")


class TestKernelRefusal:
    pytestmark = needs_bpf()

    def test_verifier(self, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["prog", "run", f"{OBJECTS}/fault.o", "--data-in", f"hex:{PING.hex()}", "--engine",
                "kernel"]
        assert cli.main(argv) == 4
        said = capsys.readouterr().err
        assert said.startswith("xdpu: program xdp_fault: the kernel's verifier says: ")
        assert said.count("\n") == 1
        assert cli.main([*argv, "-v"]) == 4
        assert capsys.readouterr().err.count("\n") > 3

    def test_no_privilege(self, tmp_path: Path) -> None:
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        done = xdpu("prog", "run", f"{EXAMPLES}/drop.o", "--data-in", f"hex:{PING.hex()}",
                    "--engine", "kernel", prefix=nobody, HOME=str(tmp_path))
        assert done.returncode == 4 and "not permitted" in done.stderr.lower()
        assert "run as root" in done.stderr and done.stderr.count("\n") == 1
