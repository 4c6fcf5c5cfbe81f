"""Peers of bench prog: DPDK's library where it is installed, and plug-ins that lie or break."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.cases import EXAMPLES
from control.cli import main
from tests.privileges import needs_bpf
from xdp_runtime.errors import ConfigError

HERE = Path(peers.__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [*needs_bpf(), pytest.mark.skipif(COMPILER is None, reason="a plug-in is C: cc")]
FLAGS = ("-O1", "-fPIC", "-shared", f"-I{HERE}")
# answers with the packet as it is and this verdict, which tests replace
LIAR = """
#include "peer.h"
#include <string.h>
const char *peer_name(void) { return "liar"; }
void *peer_load(const char *o, const char *p, char *why, size_t n) { return "loaded"; }
int peer_compile(void *l, char *why, size_t n) { return 0; }
int64_t peer_run(void *l, const uint8_t *p, uint32_t n, uint64_t c, uint8_t *out, uint32_t *m)
{ memcpy(out, p, n); *m = n; return VERDICT; }
void peer_close(void *l) {}
"""


def build(folder: Path, source: str, *flags: str) -> Path:
    (folder / "peer.c").write_text(source)
    out = folder / "peer.so"
    subprocess.run([COMPILER or "", *FLAGS, "-o", out, folder / "peer.c", *flags], check=True)
    return out


def bench(folder: Path, obj: Path, peer: Path) -> tuple[int, dict[str, Any]]:
    code = main(["bench", "prog", str(obj), "--peer", str(peer), "--repeat", "300", "--rounds",
                 "2", "--out", str(folder / "out")])
    return code, json.loads((folder / "out" / "bench.json").read_text())


@pytest.fixture(scope="module")
def dpdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built here."""
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True,
                           check=False) if shutil.which("pkg-config") else None
    if flags is None or flags.returncode or not Path("/usr/include/dpdk/rte_bpf.h").exists():
        pytest.skip("DPDK's librte_bpf is not installed (libdpdk-dev)")
    out = tmp_path_factory.mktemp("peer") / "dpdk_bpf.so"
    subprocess.run([COMPILER or "", *FLAGS, "-Wall", "-Werror", "-o", out, HERE / "dpdk_bpf.c",
                    *flags.stdout.split(), "-lrte_bpf"], check=True)
    return out


@pytest.mark.dpdk
def test_librte_bpf_does_the_same_and_is_timed(
        dpdk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = bench(tmp_path, HERE / "classify.o", dpdk)
    assert code == 0 and result["plan"]["peers"] == ["librte_bpf"]
    rows = {row["verdict"]: row for row in result["rows"]}
    assert set(rows) == {"TX", "PASS"}
    for row in result["rows"]:
        assert len(row["peers"]["librte_bpf"]["samples"]["net"]) == 2
        assert "kernel" in row and "ours" in row
    assert "librte_bpf: " in capsys.readouterr().out


@pytest.mark.dpdk
def test_what_librte_bpf_cannot_run_is_said(dpdk: Path, tmp_path: Path) -> None:
    code, result = bench(tmp_path, EXAMPLES / "tx.o", dpdk)
    assert code == 0
    row = result["rows"][0]
    assert row["peers"] == {} and "ours" in row
    assert "no section dpdk/" in row["without_peers"]["librte_bpf"]


def test_a_peer_that_answers_right_has_figures(tmp_path: Path) -> None:
    _, result = bench(tmp_path, EXAMPLES / "pass.o", build(tmp_path, LIAR, "-DVERDICT=2"))
    assert result["rows"][0]["peers"]["liar"]["raw"]["median"] > 0


@pytest.mark.parametrize(("example", "verdict", "said"), [
    ("pass", 1, "verdict: ours 2, liar 1"), ("tx", 3, "packet: byte "),
    ("pass", -1, "liar: cannot run on this packet"),
])
def test_a_peer_that_answers_wrong_has_none(example: str, verdict: int, said: str,
                                            tmp_path: Path) -> None:
    code, result = bench(tmp_path, EXAMPLES / f"{example}.o",
                         build(tmp_path, LIAR, f"-DVERDICT={verdict}"))
    assert code == 0
    row = result["rows"][0]
    assert row["ok"] and row["peers"] == {} and said in row["without_peers"]["liar"]


def test_a_peer_that_refuses_says_why(tmp_path: Path) -> None:
    source = LIAR.replace('{ return "loaded"; }',
                          '{ strncpy(why, "only on Tuesdays", n); return 0; }')
    _, result = bench(tmp_path, EXAMPLES / "pass.o", build(tmp_path, source, "-DVERDICT=2"))
    assert result["rows"][0]["without_peers"]["liar"] == "liar: only on Tuesdays"


def test_what_is_no_peer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        peers.Peer(str(EXAMPLES / "pass.o"))
    with pytest.raises(ConfigError, match=r"has no function peer_run \(bench/peers/peer.h"):
        peers.Peer(str(build(tmp_path, LIAR.replace("peer_run", "other"), "-DVERDICT=2")))
