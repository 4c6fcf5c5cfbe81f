"""Other engines that run a program beside ours: shared objects with the functions of peer.h.

    make -C bench/peers dpdk_bpf.so
    xdpu bench prog bench/peers/classify.o --peer bench/peers/dpdk_bpf.so

A peer gets the object's path and the program's name, and says whether it can run that.  Its verdict
and bytes are compared with ours first: one that differs has no figure, and it is said.  Map entries
are not given to it, so a peer should refuse programs that need some.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.agree import Mismatch, Outcome, difference
from bench.cases import Case
from bench.sides import Sample
from xdp_runtime.errors import ConfigError, XdpuError

_ROOM_BYTES = 8192
_WHY_BYTES = 512
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "peer_name": (ctypes.c_char_p, []),
    "peer_load": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p,
                                    ctypes.c_size_t]),
    "peer_compile": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "peer_run": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32,
                                  ctypes.c_uint64, ctypes.c_char_p,
                                  ctypes.POINTER(ctypes.c_uint32)]),
    "peer_close": (None, [ctypes.c_void_p]),
}


class Peer:
    """A plug-in.  Raises ConfigError for a file that is none."""

    def __init__(self, path: str) -> None:
        try:
            self.library = ctypes.CDLL(str(Path(path).resolve()))
        except OSError as error:
            raise ConfigError(f"--peer {path}", f"cannot be loaded: {error}") from error
        for name, (result, parameters) in _FUNCTIONS.items():
            try:
                function = getattr(self.library, name)
            except AttributeError:
                raise ConfigError(f"--peer {path}", f"has no function {name}",
                                  "bench/peers/peer.h says what a peer needs") from None
            function.restype, function.argtypes = result, parameters
        self.name: str = self.library.peer_name().decode(errors="replace")


class PeerSide:
    """A peer's program and a packet.  Raises XdpuError if the peer cannot run it."""

    method = "fresh copy"

    def __init__(self, peer: Peer, case: Case, program: str, stack: ExitStack) -> None:
        self.name, self._library, self._packet = peer.name, peer.library, case.packet
        why = ctypes.create_string_buffer(_WHY_BYTES)
        self._loaded = self._library.peer_load(
            str(case.object_path).encode(), program.encode(), why, _WHY_BYTES)
        if not self._loaded:
            raise XdpuError(peer.name, why.value.decode(errors="replace") or "refuses")
        stack.callback(self._library.peer_close, self._loaded)
        if self._library.peer_compile(self._loaded, why, _WHY_BYTES):
            raise XdpuError(peer.name, why.value.decode(errors="replace") or "does not compile it")

    def run(self, count: int) -> tuple[float, Outcome]:
        return self._run(self._loaded, count)

    def _run(self, loaded: int | None, count: int) -> tuple[float, Outcome]:
        """ns a run, and what the last one came to.  Raises Mismatch if it fails."""
        out = ctypes.create_string_buffer(_ROOM_BYTES)
        length = ctypes.c_uint32(_ROOM_BYTES)
        began = time.perf_counter_ns()
        verdict = self._library.peer_run(loaded, self._packet, len(self._packet), count, out,
                                         ctypes.byref(length))
        took = (time.perf_counter_ns() - began) / count
        if verdict < 0 or length.value > _ROOM_BYTES:
            raise Mismatch(f"{self.name}: cannot run on this packet of {len(self._packet)} bytes")
        return took, Outcome(verdict & 0xFFFFFFFF, out.raw[:length.value], b"")

    def agree(self, ours: Outcome) -> None:
        """Raises Mismatch."""
        self._wanted = ours
        for count in (1, 100):
            found = difference(("ours", self.name), ours, self._run(self._loaded, count)[1])
            if found:
                raise Mismatch(found)

    def sample(self, count: int) -> Sample:
        floor, _ = self._run(None, count)
        raw, last = self._run(self._loaded, count)
        if last != self._wanted:
            raise Mismatch(f"{self.name}: {count} runs did not end as one does")
        return {"floor": floor, "raw": raw, "net": raw - floor}

    def timed(self) -> dict[str, Callable[[int], object]]:
        return {"raw": self.run, "floor": lambda count: self._run(None, count)}


def sides(peers: Sequence[Peer], case: Case, program: str, ours: Outcome, stack: ExitStack
          ) -> tuple[list[PeerSide], dict[str, str]]:
    """Those that agree with ours, and why the others have no figure."""
    found, without = [], {}
    for peer in peers:
        try:
            side = PeerSide(peer, case, program, stack)
            side.agree(ours)
            found.append(side)
        except (Mismatch, XdpuError) as error:
            without[peer.name] = str(error)
    return found, without
