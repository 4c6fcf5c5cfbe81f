"""xdpu check: verdicts in words and as JSON, the kernel's opinion, what is remembered."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control import check, cli
from tests.control.run_xdpu import EXAMPLES, OBJECTS, ROOT, xdpu
from tests.privileges import needs_bpf
from xdp_runtime.errors import LoadError
from xdp_runtime.verifier import cached

FAULT, SSH = f"{OBJECTS}/fault.o", f"{OBJECTS}/ssh.o"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.o"))
SAFE = r"{}: safe \([\d,]+ instructions, [\d,]+ steps, [\d,]+ states, \d+\.\d\d s\)"


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache."""
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


def ask(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["check", *argv, "-j"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("example", NAMES)
def test_examples_are_safe(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All XDP programs of the object, one line each."""
    assert cli.main(["check", f"{EXAMPLES}/{example}.o"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(":")[0] for line in lines]
    assert example in names and len(names) == len(set(names))
    assert all(re.fullmatch(SAFE.format(r"\w+"), line) for line in lines)


def test_a_program_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", SSH, "-n", "ssh_checked"]) == 0
    assert re.fullmatch(SAFE.format("ssh_checked") + "\n", capsys.readouterr().out)


def test_a_refusal_says_where_why_and_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", SSH]) == 4
    said = capsys.readouterr()
    refused, known, mend, safe = said.out.splitlines()
    assert refused.startswith(
        "ssh_unchecked: instruction 11 (ssh.c:19: return tcp->dest == bpf_htons(22) ? XDP_DROP : "
        "XDP_PASS;): 2 bytes at offset 16 of the packet are not proven to exist")
    assert known.startswith("  known: r2=a packet pointer (off=14, var=scalar(")
    assert mend == "  mend: compare this very pointer plus its size with data_end first"
    assert re.fullmatch(SAFE.format("ssh_checked"), safe)
    assert said.err == ""


def test_safe_and_not_for_user_space(capsys: pytest.CaptureFixture[str]) -> None:
    """What loading it would say."""
    assert cli.main(["check", f"{OBJECTS}/elsewhere.o"]) == 4
    safe, lookup, release, flag = capsys.readouterr().out.splitlines()
    assert re.fullmatch(SAFE.format("socket"), safe)
    assert lookup == ("  refused when it is loaded: helper bpf_sk_lookup_udp cannot run in user "
                      "space: the socket is an object of the kernel, which no process can hold")
    assert "bpf_sk_release" in release
    assert flag == "  refused when it is loaded: map odd: HASH has no flag 0x40000000"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, SSH, code=4)
    assert (answer["object"], answer["ok"]) == ("ssh.o", False)
    refused, safe = answer["programs"]["ssh_unchecked"], answer["programs"]["ssh_checked"]
    assert set(refused) == set(safe) == {
        "ok", "errors", "instructions", "steps", "states", "seconds", "cached", "refused"}
    (error,) = refused["errors"]
    assert set(error) == {"insn", "kind", "text", "state", "mend", "line"}
    assert (error["insn"], error["kind"]) == (11, "bounds")
    assert error["line"] == {"file": "./ssh.c", "line": 19, "column": 14,
                             "text": "return tcp->dest == bpf_htons(22) ? XDP_DROP : XDP_PASS;"}
    assert safe["ok"] and safe["errors"] == [] and safe["instructions"] == 19


def test_facts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    facts = ask(capsys, SSH, "-n", "ssh_checked", "--explain")["programs"]["ssh_checked"]["facts"]
    at = {note["insn"]: note for note in facts}
    assert len(facts) == 19 and all(note["visited"] for note in facts)
    assert at[5]["branch"] == at[13]["branch"] == "open"
    assert at[1]["context"] and at[1]["operands"]["r1"]["to"] == ["context"]
    r3 = at[10]["operands"]["r3"]
    assert (r3["kinds"], r3["umin"], r3["umax"], r3["mask"]) == (["number"], 0, 60, 0x3C)
    tcp = at[14]["operands"]["r2"]
    assert (tcp["kinds"], tcp["to"], tcp["offset"], tcp["proven"]) == (
        ["pointer"], ["packet"], 14, 34)
    assert (tcp["further"]["umin"], tcp["further"]["umax"]) == (0, 60)
    assert "2 bytes at r2+2 may be read" in at[14]["obligations"]
    assert at[14]["line"]["line"] == 34


def test_annotated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", SSH, "--explain"]) == 4
    said = capsys.readouterr().out
    assert "r2=packet+14+(0..60 &0x3c), 34 proven" in said
    assert "       ^ 2 bytes at offset 16 of the packet are not proven to exist" in said
    assert re.search(r"^- +1\d: .*\| never runs$", said, re.M), "behind the refusal"


def test_second_time_is_from_the_cache(cold: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["check", SSH, "-v"]
    assert cli.main(argv) == 4
    first = capsys.readouterr().out
    assert "(cached)" not in first
    assert len(list(cold.glob("verdict-*.json"))) == 2
    monkeypatch.setattr(cached, "verify", None)  # it would be called
    assert cli.main(argv) == 4
    second = capsys.readouterr().out
    assert second.replace(" (cached)", "") == first
    assert second.count("(cached)") == 2
    assert cli.main(["check", SSH]) == 4
    assert "(cached)" not in capsys.readouterr().out, "only with -v"


def test_a_damaged_entry_is_no_entry(cold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", FAULT]) == 4
    first = capsys.readouterr().out
    (entry,) = cold.glob("verdict-*.json")
    entry.write_bytes(b'{"errors": []}' + entry.read_bytes()[14:])
    assert cli.main(["check", FAULT, "-v"]) == 4
    assert capsys.readouterr().out.startswith(first)


def test_what_cannot_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", f"{OBJECTS}/kprobe.o"]) == 4
    assert "no XDP program" in capsys.readouterr().err
    assert cli.main(["check", f"{OBJECTS}/kprobe.o", "-n", "on_schedule"]) == 4
    assert "is not XDP" in capsys.readouterr().err
    assert cli.main(["check", SSH, "-n", "ssh"]) == 4
    assert "it has: ssh_unchecked, ssh_checked" in capsys.readouterr().err
    assert cli.main(["check", SSH, "--second-opinion", "neighbour"]) == 2


def test_other_verbs_refuse_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", FAULT]) == 4
    place = capsys.readouterr().out.splitlines()[0]
    for argv in (["dump", FAULT, "--what", "ir"],
                 ["prog", "run", FAULT, "--data-in", "hex:" + "00" * 60]):
        assert cli.main([*argv, "-j"]) == 4
        said = capsys.readouterr()
        assert said.err.startswith(f"xdpu: {place} (check ")
        error = json.loads(said.out)["error"]
        assert (error["kind"], error["insn"]) == ("verify", 1)


# ---- a second opinion ----------------------------------------------------------------------------

class TestKernel:
    pytestmark = needs_bpf()

    def test_they_agree(self, capsys: pytest.CaptureFixture[str]) -> None:
        answer = ask(capsys, SSH, "--second-opinion", "kernel", code=4)["programs"]
        assert answer["ssh_checked"]["kernel"] == {"ok": True, "text": ""}
        assert answer["ssh_unchecked"]["kernel"] == {
            "ok": False, "text": "R2 offset is outside of the packet"}
        assert answer["ssh_checked"]["agree"] and answer["ssh_unchecked"]["agree"]

    def test_in_words(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["check", SSH, "--second-opinion", "kernel"]) == 4
        said = capsys.readouterr().out
        assert "  kernel: refuses it: R2 offset is outside of the packet\n" in said
        assert said.endswith("  kernel: accepts it\n") and "disagree" not in said
        assert cli.main(["check", FAULT, "--second-opinion", "kernel", "-v"]) == 4
        assert "0: R1=ctx" in capsys.readouterr().err, "the kernel's log"

    @pytest.mark.parametrize("example", NAMES)
    def test_examples(self, example: str, capsys: pytest.CaptureFixture[str]) -> None:
        answer = ask(capsys, f"{EXAMPLES}/{example}.o", "--second-opinion", "kernel")
        assert all(one["agree"] for one in answer["programs"].values())

    def test_no_privilege(self, tmp_path: Path) -> None:
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        done = xdpu("check", f"{EXAMPLES}/drop.o", "--second-opinion", "kernel", prefix=nobody,
                    HOME=str(tmp_path))
        assert done.returncode == 4
        assert done.stderr.splitlines()[-1] == (
            "xdpu: --second-opinion kernel: the kernel may not be asked (run as root, or with "
            "CAP_BPF and CAP_NET_ADMIN)")


@pytest.mark.parametrize("path", [SSH, f"{EXAMPLES}/drop.o"])
def test_a_disagreement_fails_with_both_reasons(
        path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    safe = path != SSH
    opinion = check.Opinion(not safe, "" if not safe else "R1 is what I do not like")
    monkeypatch.setattr(check, "ask_kernel", lambda obj, spec: opinion)
    name = "drop" if safe else "ssh_unchecked"
    argv = [path, "-n", name, "--second-opinion", "kernel"]
    assert cli.main(["check", *argv]) == 4
    said = capsys.readouterr().out
    verdict = "refuses it: R1 is what I do not like" if safe else "accepts it"
    assert said.splitlines()[-1] == f"  kernel: {verdict} (the two disagree)"
    assert ("drop: safe" if safe else "are not proven to exist") in said
    answer = ask(capsys, *argv, code=4)
    assert not answer["ok"] and not answer["programs"][name]["agree"]


def test_a_kernel_that_may_not_be_asked_is_an_error(monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(obj: object, name: str) -> None:
        raise LoadError("map cells", "the kernel does not make it: Operation not permitted",
                        "run as root, or with CAP_BPF and CAP_NET_ADMIN")

    monkeypatch.setattr("xdp_runtime.kernel.load_into_kernel", refuse)
    assert cli.main(["check", SSH, "--second-opinion", "kernel"]) == 4
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(
        "xdpu: --second-opinion kernel: the kernel may not be asked (run as root")


# ---- the documentation ---------------------------------------------------------------------------

def commands() -> list[tuple[str, str]]:
    """What docs/verifier.md says that xdpu check prints."""
    text = (ROOT / "docs" / "verifier.md").read_text()
    blocks = re.findall(r"^    \$ xdpu (check .*)\n((?:    .*\n|\n(?=    ))*)", text, re.M)
    return [(argv, re.sub(r"^    ", "", out, flags=re.M)) for argv, out in blocks]


@pytest.mark.parametrize(("argv", "expected"), commands(), ids=lambda v: v[:40])
def test_what_the_documentation_shows_is_real(
        argv: str, expected: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    cli.main(shlex.split(argv))
    said = [re.sub(r"\d+\.\d\d s", "0.00 s", line)
            for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in expected.splitlines() if line != "..."]
    assert shown and all(line in said for line in shown), "\n".join(said)


def test_the_documentation_has_all_kinds() -> None:
    from xdp_runtime.verifier.env import KINDS

    text = (ROOT / "docs" / "verifier.md").read_text()
    assert not [kind for kind in KINDS if f"| `{kind}` |" not in text]
