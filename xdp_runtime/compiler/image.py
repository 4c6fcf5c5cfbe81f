"""Machine code that is not loaded yet, and its form in the cache."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Image:
    """Machine code that is not loaded yet."""

    object_code: bytes
    exports: tuple[str, ...]
    symbols: tuple[str, ...]  # external data symbols to be bound
    apart: tuple[bytes, ...] = ()  # machine code of the rare templates that it calls
    pipeline: str = ""  # the passes it got (target.pipeline)
    from_cache: bool = field(default=False, compare=False)
    compile_s: float = field(default=0.0, compare=False)  # verifying included

    @property
    def origin(self) -> str:
        """Where it comes from and which passes it got, for people."""
        if self.from_cache:
            return f"{self.pipeline}, from the compile cache"
        return f"{self.pipeline}, compiled in {self.compile_s:.2f} s"


def pack(image: Image) -> bytes:
    parts = (image.object_code, *image.apart)
    head = json.dumps({"exports": image.exports, "symbols": image.symbols,
                       "pipeline": image.pipeline, "parts": [len(p) for p in parts]}).encode()
    return b"".join((len(head).to_bytes(4, "little"), head, *parts))


def unpack(raw: bytes) -> Image:
    size = int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4 : 4 + size])
    ends = list(itertools.accumulate(head["parts"], initial=4 + size))
    code, *apart = (raw[start:end] for start, end in itertools.pairwise(ends))
    return Image(code, tuple(head["exports"]), tuple(head["symbols"]), tuple(apart),
                 head["pipeline"], True)
