"""By which compile a program is loaded.

Machine code that the cache has is optimised code, and nothing else is looked at.  Otherwise a run
may begin with baseline code (baseline.py), while optimised code is compiled in the background and
then takes its place.  Not so

    where baseline code is not wanted, or code that is not optimised is (`opt` 0);
    for programs so large that linear passes are all that they get (target.PLAIN_SLOTS);
    for what is asked for later, when ports are open: a copy of the process would have them, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from xdp_runtime.compiler import link
from xdp_runtime.compiler.background import Background
from xdp_runtime.compiler.image import Image, pack, unpack
from xdp_runtime.object import Object, ProgramSpec


class Tiers:
    """The compiles of one run.  Close it, or use it as a context manager."""

    def __init__(self, baseline: bool) -> None:
        self._wanted = baseline
        self._key, self._began_s = "", 0.0
        self._background: Background | None = None
        self.image: Image | None = None  # baseline code that waits to be replaced

    def begin(self, obj: Object, entry: ProgramSpec, workers: int, opt: int,
              units: Sequence[link.Unit], fuel: int | None) -> Image:
        """What the run begins with.  Raises LoadError, VerifyError."""
        from xdp_runtime.compiler import target
        from xdp_runtime.compiler.baseline import compile_apart

        key = link.content_key(obj, entry, workers, opt, units, fuel)
        found = link.cached(key)
        if found is not None:
            return found
        began_s = time.monotonic()
        lowered = link.lower(obj, entry, workers, units, fuel)
        if not self._wanted or opt == 0 or lowered.slots > target.PLAIN_SLOTS:
            return link.compile_lowered(lowered, opt, units, key, began_s)
        image = replace(compile_apart(lowered, units), compile_s=time.monotonic() - began_s)
        self._background = Background(
            lambda: pack(link.compile_lowered(lowered, opt, units, key, began_s)))
        self.image, self._key, self._began_s = image, key, began_s
        return image

    def compile(self, obj: Object, entry: ProgramSpec, workers: int, opt: int,
                units: Sequence[link.Unit], fuel: int | None) -> Image:
        """As link.compile_program, for any thread; what the run begins with is not compiled
        again."""
        image = self.image
        if image is not None and self._key == link.content_key(obj, entry, workers, opt, units,
                                                               fuel):
            return image
        return link.compile_program(obj, entry, workers, opt, units, fuel)

    @property
    def ended(self) -> int:
        """A descriptor that is readable when `optimised` has an answer, -1 when there is none."""
        return self._background.ended if self._background is not None else -1

    def optimised(self) -> Image | None:
        """The code that takes the place of `image`, once.  None while it is compiled, and when it
        is not.  Raises XdpuError, once, if it could not be."""
        if self._background is None:
            return None
        try:
            found = self._background.result()
        except BaseException:
            self.close()
            raise
        if found is None:
            return None
        took_s = time.monotonic() - self._began_s
        self.close()
        return replace(unpack(found), from_cache=False, compile_s=took_s)

    def close(self) -> None:
        if self._background is not None:
            self._background.close()
            self._background = None
        self.image = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
