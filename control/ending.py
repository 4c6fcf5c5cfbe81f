"""The end of a run: every worker stopped, then the summary."""

from __future__ import annotations

import contextlib
import json
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from control.losses import ABORTED, Losses
from control.watch import describe_aborted, note, summary_record, summary_text
from dataplane.whereabouts import describe
from xdp_runtime.errors import XdpuError

if TYPE_CHECKING:
    from control.upgrade import Upgrade

_STOP_TIMEOUT_S = 5.0
_LEFT: list[contextlib.ExitStack] = []  # alive until the process ends, when the keeper mends


def stop_engine(engine: Any, undo: contextlib.ExitStack) -> None:
    """Stop every worker.  One that hangs keeps its memory: what it uses is not closed then."""
    for worker in engine.workers:
        worker.stop()
    deadline_s = time.monotonic() + _STOP_TIMEOUT_S
    hung = []
    for worker in engine.workers:
        with contextlib.suppress(Exception):  # the watch has told it
            worker.join(max(deadline_s - time.monotonic(), 0.001))
        if worker.running:
            hung.append(worker)
    if hung:
        _LEFT.append(undo.pop_all())
        raise XdpuError(f"worker {hung[0].number}", f"did not stop within {_STOP_TIMEOUT_S:g} s: "
                        f"{describe(hung[0], engine.program.spec.name)}",
                        "the process ends without it")


def finish(args: Namespace, watch: Any, engine: Any, duration_s: float,
           ports: dict[str, dict[str, int]], losses: Losses, out: Any,
           upgrade: Upgrade | None = None) -> None:
    """The summary, on standard output."""
    total = engine.stats.total()
    if args.json:
        record = summary_record(watch.name, engine.program.spec.name, duration_s, total, ports,
                                losses)
        record["aborted"] = [{"program": name, "reason": reason, "packets": count}
                             for (name, reason), count in sorted(engine.aborted().items())]
        if upgrade is not None and upgrade.baseline:
            record["code"] = upgrade.record()
        print(json.dumps(record), file=out, flush=True)
    else:
        print(summary_text(duration_s, total, ports if args.verbose else {}, losses), end="",
              file=out, flush=True)
    if upgrade is not None and upgrade.baseline:
        note(upgrade.sentence())
    watch.show_aborted()
    watch.say_missing_ports()
    if total["aborted"] or any(total[name] for name in ABORTED):
        note(describe_aborted(engine))
