"""Optimised code in place of the baseline code that a run began with (compiler/tiers.py)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from control.watch import is_read, note
from dataplane.engine import Engine
from xdp_runtime.compiler.image import Image
from xdp_runtime.compiler.tiers import Tiers
from xdp_runtime.errors import XdpuError


class Upgrade:
    """`check` is called now and then; what came of it is in `record`, for the summary."""

    def __init__(self, tiers: Tiers, engine: Engine, as_json: bool,
                 swapped: Callable[[], object] = lambda: None) -> None:
        self._tiers, self._engine, self._as_json = tiers, engine, as_json
        self._swapped = swapped  # called when it was
        self._baseline = tiers.image
        if engine.program.image is not tiers.image:  # the ports are not what was foreseen
            self._baseline = None
            tiers.close()
        self._why = "the run ended before optimised code was compiled"
        self._optimised: Image | None = None

    @property
    def baseline(self) -> bool:
        """The run began with baseline code."""
        return self._baseline is not None

    def wakers(self) -> Iterable[int]:
        """Descriptors that are readable when `check` should be called."""
        return (self._tiers.ended,) if self._tiers.ended >= 0 else ()

    def check(self) -> None:
        if self._tiers.ended < 0:
            return
        if self._engine.program.image is not self._baseline:
            self._tiers.close()
            self._why = "another program took its place before optimised code was compiled"
            return
        try:
            image = self._tiers.optimised()
            if image is None:
                return
            self._engine.recode(image)
        except (XdpuError, RuntimeError) as error:
            self._why = f"optimised code could not be had: {error}"
            note(f"baseline code goes on, as {self._why}")
            self._say(optimised=False, why=self._why)
            return
        self._optimised = image
        self._swapped()
        note(f"machine code: {self._replaced(image)}")
        self._say(optimised=True, pipeline=image.pipeline, after_s=round(image.compile_s, 3))

    def _say(self, **what: Any) -> None:
        if self._as_json and is_read(sys.stdout):
            print(json.dumps({"type": "code", "ts": round(time.time(), 3), **what}), flush=True)

    def _replaced(self, image: Image) -> str:
        assert self._baseline is not None
        return (f"{image.pipeline}, {image.compile_s:.2f} s after it was begun, in place of "
                f"baseline code, which was there after {self._baseline.compile_s:.3f} s")

    def sentence(self) -> str:
        """For the end of a run that began with baseline code."""
        if self._optimised is None:
            return f"baseline code all the time: {self._why}"
        return f"machine code: {self._replaced(self._optimised)}"

    def record(self) -> dict[str, Any]:
        """For the summary in JSON, likewise."""
        assert self._baseline is not None
        done = self._optimised
        return {"baseline_after_s": round(self._baseline.compile_s, 3),
                "optimised_after_s": None if done is None else round(done.compile_s, 3),
                "pipeline": (done or self._baseline).pipeline,
                **({"why": self._why} if done is None else {})}
