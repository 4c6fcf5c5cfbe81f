"""Compile the templates that most runs need, so that the first run needs no Numba.

    python -m control.prebuild

`make venv` and `make wheel` do it.  What it makes is LLVM bitcode, a file a template, named by all
that it depends on: our sources, the versions of Python, Numba and LLVM.  Where one of these differs
no file has the right name, and the template is compiled when it is first used, as are those that
are not foreseen here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from afxdp.port import kind_of
from dataplane import capture_put, loop
from dataplane.live_port import LIVE
from dataplane.pcap import PCAP, PCAPNG
from dataplane.tap import TAP
from xdp_runtime import cache, repeat
from xdp_runtime.compiler import templates
from xdp_runtime.helpers import HELPERS
from xdp_runtime.maps import FAMILIES, LOCKED
from xdp_runtime.maps.scout import SCOUTS, STEP
from xdp_runtime.template import Template

_AT_ONCE = 250  # templates.bitcodes shares so many among processes


def foreseen() -> list[Template]:
    """All maps' operations, all helpers, the loop over an interface's ports, and what they use."""
    wanted: list[Template] = []
    for family in (*FAMILIES.values(), *LOCKED.values()):
        wanted += family.operations.values()
    wanted += [helper.template for helper in HELPERS.values() if helper.template is not None]
    wanted += [STEP, *(template for template, _ in SCOUTS.values())]
    interfaces = [kind_of(frags, way, hints, checksums)
                  for frags, way in ((False, "xsk"), (False, "live"), (True, "xsk"))
                  for hints in (False, True) for checksums in (False, True)]
    units = [repeat.UNIT, repeat.UNIT_FRAGS, capture_put.UNIT]
    units += [loop.unit([front], [TAP, LIVE], several)
              for front in (*interfaces, PCAP, PCAPNG) for several in (False, True)]
    for unit in units:
        wanted += unit.templates
    return templates.closure(dict.fromkeys(wanted))


def build(wanted: Iterable[Template]) -> int:
    """Compile them into `cache.PREBUILT`, and remove what is older; how many there are."""
    os.environ["XDPU_CACHE"] = str(cache.PREBUILT)
    todo = list(wanted)
    for first in range(0, len(todo), _AT_ONCE):
        templates.bitcodes(todo[first:first + _AT_ONCE])
    names = {templates.entry_name(template) for template in todo}
    for path in cache.PREBUILT.iterdir():
        if path.name in names:
            path.chmod(0o644)
        else:
            path.unlink()
    return len(names)


def main() -> int:
    started_s = time.monotonic()
    print(f"prebuild: {build(foreseen())} templates, {time.monotonic() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
