"""A file system that is full: one sentence when maps are made, no SIGBUS when they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.control.run_xdpu import EXAMPLES, ROOT, environment
from tests.privileges import needs_bpf

pytestmark = [pytest.mark.root, needs_bpf()[1]]

_MOUNT = """
import subprocess, sys
from pathlib import Path
where = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}", "tmpfs", where], check=True)
"""
_FILL = _MOUNT + """
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.errors import OutOfMemory
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType
made, refused = [], ""
for n in range(9):
    try:
        made.append(Map.create(MapSpec(f"m{n}", MapType.ARRAY, 4, 1 << 10, 2000), 1, where))
    except OutOfMemory as error:
        refused = str(error)
        break
with open(where / "others", "wb", 0) as others:  # and then somebody takes the rest
    try:
        while True:
            others.write(bytes(4096))
    except OSError:
        pass
for one in made:
    compile_operations(one)
    for index in range(2000):
        one[index.to_bytes(4, "little")] = b"x" * 1024
print(len(made), sorted(path.name for path in where.iterdir()), refused)
"""
_RUN = _MOUNT + """
import os
os.environ["XDPU_RUNDIR"] = str(where)
from control.cli import main
sys.exit(main(["run", sys.argv[3], "--port", "tap", "--iface", "t0", "--no-stack", "-d", "0.2"]))
"""


def isolated(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """In mount and network namespaces of its own."""
    return subprocess.run(["unshare", "-m", "-n", sys.executable, "-c", script, *args], cwd=ROOT,
                          env=environment(), capture_output=True, text=True, check=False,
                          timeout=120)


def test_maps_that_were_made_can_be_filled(tmp_path: Path) -> None:
    """5 MiB hold two maps of 2 MiB each, all of them, whatever others put there."""
    done = isolated(_FILL, str(tmp_path), "5m")
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith("2 ['m0', 'm1', 'others'] map m2: needs 2 MiB, "), done.stdout
    assert "available (lower max_entries, or make room)" in done.stdout


@pytest.mark.parametrize("size", ["4k", "16k", "64k", "256k", "1m", "4m"])
def test_a_run_says_what_it_has_no_room_for(tmp_path: Path, size: str) -> None:
    done = isolated(_RUN, str(tmp_path), size, str(EXAMPLES / "counter.o"))
    assert done.returncode in (0, 4, 5), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith("xdpu: ") and done.stderr.count("\n") == 1
    assert done.returncode == 0 or size != "4m"
