"""Help, exit codes, and one clear sentence for every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from control import cli, options
from tests.control.run_xdpu import EXAMPLES, OBJECTS, ROOT, environment, xdpu
from xdp_runtime.errors import ConfigError

DROP = str(EXAMPLES / "drop.o")
ELF_OBJECTS = ROOT / "tests" / "xdp_runtime" / "objects"
PACKET = "hex:" + "00" * 64
HEAVY = {"llvmlite", "numba", "numpy", "pyroute2", "cffi", "_cffi_backend", "elftools", "scapy"}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], []])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = ("import sys; from control.cli import main; main(sys.argv[1:]);"
            "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True,
                          check=True, env=environment())
    loaded = set(done.stderr.splitlines()[-1].split())
    assert not loaded & HEAVY
    assert {"control", "xdp_runtime"} == loaded & {
        "control", "xdp_runtime", "dataplane", "afxdp", "lb", "dpdk"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb.words in text for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xdpu ")


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda v: v.words)
def test_every_verb_has_help(verb: options.Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for option in verb.options:
        assert option.hidden != (option.names.split()[-1] in text)


@pytest.mark.parametrize(("typed", "words", "rest"), [
    (["run", "x"], "run", ["x"]), (["ru", "x"], "run", ["x"]),
    (["prog", "run", "x"], "prog run", ["x"]), (["pr", "r"], "prog run", []),
    (["feat"], "features", []), (["cl"], "clean", []), (["sta", "-j"], "status", ["-j"]),
])
def test_verbs_may_be_shortened(typed: list[str], words: str, rest: list[str]) -> None:
    verb, left = options.find_verb(typed, cli.VERBS)
    assert (verb.words, left) == (words, rest)


def test_an_ambiguous_verb_is_refused() -> None:
    verbs = [options.Verb("start", "", ""), options.Verb("status", "", "")]
    with pytest.raises(ConfigError, match=r"st: is ambiguous \(one of: start, status\)"):
        options.find_verb(["st"], verbs)


@pytest.mark.parametrize(("text", "value"), [
    ("0-3", (0, 1, 2, 3)), ("0,2", (0, 2)), ("0-1,8", (0, 1, 8)), ("7", (7,)), ("all", "all")])
def test_queue_lists(text: str, value: object) -> None:
    assert options.queues(text) == value


FIRST_WORDS = ", ".join(sorted({verb.words.split()[0] for verb in cli.VERBS}))
USAGE = [
    ([], f"no verb given (one of: {FIRST_WORDS})"),
    (["prog"], "no verb given after prog (one of: run)"),
    (["fly"], f"fly: is unknown (one of: {FIRST_WORDS})"),
    (["run"], "the following arguments are required: OBJ (see: xdpu run --help)"),
    (["run", DROP], "run: no packets to run on (give --iface IF or --pcap IN)"),
    (["run", DROP, "--iface", "lo", "--pcap", "x"],
     "--iface and --pcap: exclude each other (give one of them)"),
    (["run", DROP, "--iface", "lo", "--out", "x"],
     "--out: goes with --pcap (xdpu capture records interfaces)"),
    (["run", DROP, "--iface", "lo,,eth0"],
     "--iface 'lo,,eth0': has an empty name"),
    (["run", DROP, "--iface", "lo,lo"],
     "--iface lo,lo: names lo twice"),
    (["run", DROP, "--iface", "lo", "--dpdk-args", "-m 9"],
     "--dpdk-args: goes with --port dpdk:DEVICE"),
    (["run", DROP, "--port", "dpdk:net_null0", "--dpdk-args"],
     "--dpdk-args: expected one argument (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--no-stack", "--stack", "tap"],
     "--stack tap and --no-stack: exclude each other"),
    (["run", DROP, "--iface", "lo", "--setup-socket", "x", "--tx", "live"],
     "--tx live and --setup-socket: exclude each other: live frames need privileges, which the "
     "set-up process keeps to itself (--tx xsk)"),
    (["run", DROP, "--iface", "lo", "--setup-socket", "x", "--umem-pages", "huge"],
     "--umem-pages huge and --setup-socket: exclude each other: memory that a set-up process "
     "passes on is in ordinary pages (--umem-pages auto)"),
    (["run", DROP, "--iface", "lo", "--iface", "afpacket:lo"],
     "--iface afpacket:lo: names lo twice"),
    (["run", DROP, "--iface", "lo,pcap:x"],
     "--iface lo,pcap:x: pcap stands alone in its --iface (one of: afxdp, afpacket, tap, dpdk, "
     "pcap, xsk; --iface may be given several times)"),
    (["run", DROP, "--iface", "wifi:lo"],
     "--iface wifi:lo: wifi is no kind of port (one of: afxdp, afpacket, tap, dpdk, pcap, xsk; "
     "--iface may be given several times)"),
    (["run", DROP, "--iface", "pcap:in,on=out"],
     "--iface pcap:in,on=out: 'on=out' is no part of it (pcap:IN, pcap:IN,out=OUT or "
     "pcap:out=OUT)"),
    (["run", DROP, "--iface", "pcap:in,out=-"],
     "--iface pcap:in,out=-: standard output has the status lines (write to a file, or use --pcap "
     "IN --out -)"),
    (["run", DROP, "--iface", "dpdk:eth0"],
     "dpdk:eth0: names no device (a virtual device such as dpdk:net_memif0,role=client, or a PCI "
     "address such as 0000:01:00.0)"),
    (["run", DROP, "--iface", "lo", "--port", "dpdk:net_null0"],
     "--iface and --port dpdk: exclude each other (name the device by an --iface dpdk:DEVICE of "
     "its own)"),
    (["run", DROP, "--iface", "lo", "--queue", "3-0"],
     "--queue: '3-0' in '3-0' is no range (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--queue", "0,0"],
     "--queue: '0,0' names a number twice (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--queue", "some"],
     "--queue: 'some' is not a list such as 0-3 or 0,2 (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--batch-size", "0"],
     "-b/--batch-size: '0' is not a number from 1 to 256 (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--interval", "0"],
     "-i/--interval: '0' is not a time in seconds above 0 (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--duration", "nan"],
     "-d/--duration: 'nan' is not a time in seconds (see: xdpu run --help)"),
    (["run", DROP, "--iface", "lo", "--port", "afpacket", "--mode", "skb"],
     "--mode: goes with --port afxdp"),
    (["run", DROP, "--iface", "lo", "--port", "tap", "--unaligned", "--busy-poll=8"],
     "--busy-poll-budget and --unaligned: go with --port afxdp"),
    (["run", DROP, "--pcap", "in.pcap", "--filter", "tcp", "--copy-mode", "zero-copy"],
     "--copy-mode and --filter: go with --port afxdp"),
    (["run", DROP, "--iface", "lo", "--filter", ""],
     "--filter '': its end comes too early (such as: tcp port 80, or: not (icmp or src "
     "10.0.0.0/8))"),
    (["run", DROP, "--iface", "lo", "--busy-poll=0"],
     "--busy-poll-budget: '0' is not a number from 1 to 65535 (see: xdpu run --help)"),
    (["prog", "run", DROP, "--data-in", "hex:0g"],
     "--data-in: not hexadecimal bytes, Non-hexadecimal digit found (as in hex:ffffffffffff)"),
    (["prog", "run", DROP, "--data-in", "hex:00"], "--data-in: 1 bytes, a packet has 14 to 3480"),
    (["prog", "run", DROP, "--data-in", "/nowhere/packet"],
     "--data-in /nowhere/packet: No such file or directory"),
    (["prog", "run", DROP, "--data-in", PACKET, "--repeat", "0"],
     "--repeat: '0' is not a number from 1 to 2147483647 (see: xdpu prog run --help)"),
]


@pytest.mark.parametrize(("argv", "sentence"), USAGE, ids=lambda v: " ".join(v)[-40:])
def test_usage(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert said.err == f"xdpu: {sentence}\n" and said.out == ""


def test_an_unknown_choice_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", DROP, "--iface", "lo", "--mode", "fast"]) == 2
    assert capsys.readouterr().err.startswith(
        "xdpu: -m/--mode/--xdp-mode: invalid choice: 'fast' (choose")


LOAD = [
    ("/nowhere/a.o", "/nowhere/a.o: no such file"),
    ("/etc/passwd", "/etc/passwd: is not an ELF file (compile with clang -target bpf)"),
    (f"{ELF_OBJECTS}/bigendian.o", f"{ELF_OBJECTS}/bigendian.o: big-endian BPF object (compile "
     "with clang -target bpfel)"),
    (f"{OBJECTS}/kprobe.o", "kprobe.o: no XDP program; it has on_schedule (kprobe/schedule) "
     '(put the program in SEC("xdp"))'),
]


@pytest.mark.parametrize(("path", "sentence"), LOAD, ids=lambda v: Path(v).name[-20:])
@pytest.mark.parametrize("verb", [["run", "--iface", "lo"], ["prog", "run", "--data-in", PACKET],
                                  ["run", "--pcap", "/dev/null"]], ids=" ".join)
def test_objects(verb: list[str], path: str, sentence: str,
                 capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb, path]) == 4
    said = capsys.readouterr()
    assert said.err == f"xdpu: {sentence}\n" and said.out == ""


def test_an_executable_of_this_machine_is_no_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prog", "run", "/bin/true", "--data-in", PACKET]) == 4
    said = capsys.readouterr().err
    assert said.startswith("xdpu: /bin/true: ") and said.count("\n") == 1
    assert "clang -target bpf" in said


def test_an_unknown_map_type_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prog", "run", f"{OBJECTS}/badtype.o", "--data-in", PACKET]) == 4
    assert capsys.readouterr().err.startswith(
        "xdpu: map odd: map type 99 (unknown) is not supported")


def test_an_unknown_helper_is_named_with_its_instruction(
        capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prog", "run", f"{OBJECTS}/badhelper.o", "--data-in", PACKET]) == 4
    said = capsys.readouterr().err
    assert "instruction 0 (badhelper.c:10: " in said
    assert "9999" in said and "is not supported" in said


def test_an_unknown_program_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dump", DROP, "-n", "other"]) == 4
    assert capsys.readouterr().err == (
        "xdpu: program 'other': not in drop.o (it has: drop)\n")


def test_a_missing_interface(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", DROP, "--iface", "nowhere0"]) == 3
    assert capsys.readouterr().err == ("xdpu: nowhere0: there is no such interface in this "
                                       "network namespace (see: ip link)\n")


def test_no_libxdp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "afxdp._native", None)
    assert cli.main(["run", DROP, "--iface", "lo"]) == 3
    assert capsys.readouterr().err == (
        "xdpu: the AF_XDP port: libxdp is not installed (apt install libxdp-dev libbpf-dev and run "
        "make venv)\n")


@pytest.mark.root
def test_a_cpu_that_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", DROP, "--iface", "lo", "--mode", "skb", "--cpu", "5000"]) == 2
    assert capsys.readouterr().err.startswith(
        "xdpu: --cpu 5000: this process may not run there (it may on ")


@pytest.mark.root
def test_no_privilege(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = xdpu("run", DROP, "--iface", "lo", prefix=nobody, XDPU_CACHE=str(tmp_path),
                XDPU_RUNDIR=str(tmp_path / "run"))
    assert done.returncode == 3
    assert done.stderr == ("xdpu: xdpu run --port afxdp: CAP_NET_ADMIN missing (run as root, or "
                           "setcap cap_net_admin+ep; or let xdpu setup do it)\n")
    assert not (tmp_path / "run").exists()


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", DROP, "--iface", "nowhere0", "-vj"]) == 3
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["kind"] == "port" and error["hint"] == "see: ip link"
    assert said.err == f"xdpu: {error['message']}\n"


def test_a_defect_is_one_sentence(monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    def defect(args: object) -> int:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("control.status.status", defect)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == (
        "xdpu: unexpected: RuntimeError: first line (-v shows where)\n")
    assert cli.main(["status", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    """What a file says, or who calls, may be meant for the terminal."""
    assert cli.main(["check", str(EXAMPLES / "pass.o"), "-n", "a\n\x1b[2Jb"]) != 0
    told = capsys.readouterr().err
    assert r"a\n\x1b[2Jb" in told and told.count("\n") == 1 and told[:-1].isprintable()


def test_nobody_reads(tmp_path: Path) -> None:
    """A closed pipe on standard output ends it without a word."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "control", "dump", DROP], stdout=write,
                          stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "control", "dump", DROP], stdout=full,
                              stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
