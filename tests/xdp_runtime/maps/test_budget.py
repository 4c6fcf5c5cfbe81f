from __future__ import annotations

from pathlib import Path

import pytest

from control import options
from tests.control.run_xdpu import EXAMPLES
from xdp_runtime.errors import OutOfMemory
from xdp_runtime.maps import budget, layout
from xdp_runtime.object import MapSpec, MapType

FLOWS = MapSpec("flows", MapType.HASH, 16, 16, 1 << 20)
SMALL = [MapSpec(f"a{i}", MapType.ARRAY, 4, 8, 100) for i in range(6)]


def test_limit_names_the_shares_and_the_mend() -> None:
    with pytest.raises(OutOfMemory) as caught:
        budget.check("lb.o", [SMALL[0], FLOWS, *SMALL[1:]], 2, limit_bytes=16 << 20)
    said = str(caught.value)
    assert said.startswith("maps of lb.o: may come to 100.4 MiB (flows 100.3 MiB, a5 8 KiB, ")
    assert said.endswith("3 others 24 KiB), --max-map-memory allows 16 MiB "
                         "(lower max_entries of flows, or allow more)")


def test_within_the_limit() -> None:
    total = budget.check("lb.o", [FLOWS], 2, limit_bytes=1 << 30)
    assert total == layout.plan(FLOWS, 2)[1]
    assert budget.check("lb.o", [FLOWS], 2, limit_bytes=total) == total
    with pytest.raises(OutOfMemory):
        budget.check("lb.o", [FLOWS], 2, limit_bytes=total - 1)


def test_more_than_the_directory_has() -> None:
    huge = [MapSpec(f"h{i}", MapType.ARRAY, 4, 1 << 20, 1 << 16) for i in range(64)]
    with pytest.raises(OutOfMemory, match="maps of lb.o: needs 4194305 MiB, .* available"):
        budget.check("lb.o", huge, 1, Path("/dev/shm"))


@pytest.mark.parametrize(("text", "wanted"), [
    ("0", 0), ("4096", 4096), ("500M", 500 << 20), ("2g", 2 << 30), ("1KiB", 1024),
    ("3MB", 3 << 20)])
def test_sizes(text: str, wanted: int) -> None:
    assert options.size(text) == wanted


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "2X", "ten"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(Exception, match="is not a size"):
        options.size(text)


def test_prog_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    from control.cli import main

    rest = ["--data-in", "hex:" + "00" * 64, "--max-map-memory"]
    counter = f"{EXAMPLES}/counter.o"
    assert main(["prog", "run", counter, *rest, "1K"]) == 5
    said = capsys.readouterr().err
    assert "--max-map-memory allows 1 KiB (lower max_entries of" in said
    assert main(["prog", "run", counter, *rest, "1G"]) == 0
