"""The set-up process's side of a run without privileges: what it opens, passes on, and takes back.

A `Session` belongs to one connection.  It does for the run what needs privileges: it attaches the
redirect program, makes and binds the sockets, makes the TAP and puts it in the interface's place.
Sockets, TAP queues, umem and the sets that a filter asks go to the run by descriptor; the
attachment stays here, so when the run goes, however that happens, the session undoes it all.

    {"do": "open", "iface", "workers", "queues", "options": {...}}   sockets and umems
    {"do": "tap", "iface", "title", "queues"}                        a TAP's queues
    {"do": "stand in", "iface"}                                      the TAP takes the addresses
    {"do": "left", "iface"}                                          what the filter left
    {"do": "close", "iface"}                                         all of it undone
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from afxdp import passing, rings
from afxdp.port import AfxdpPort
from afxdp.umem import Umem, Umems
from dataplane import takeover
from dataplane.tap_device import TapDevice, open_tap
from xdp_runtime.errors import ConfigError, OutOfMemory, XdpuError

# what a run may ask for, and of which type
OPTIONS: dict[str, type] = {
    "mode": str, "copy_mode": str, "frame_size": int, "ring_size": int, "need_wakeup": bool,
    "promisc": bool, "unaligned": bool, "frames": int, "busy_poll": int, "wanted": str,
    "shapes": dict, "frags": bool, "hints": bool, "checksums": bool}
Answer = tuple[dict[str, Any], list[int]]


@dataclass
class _Opened:
    port: AfxdpPort
    undo: ExitStack
    tap: TapDevice | None = None
    memory_bytes: int = 0


@dataclass
class Session:
    """One run's.  `ifaces` it may have, `memory_bytes` of umem in all; `run_dir` for journals."""

    ifaces: Sequence[str]
    memory_bytes: int
    run_dir: Path
    note: Callable[[str], None]
    _open: dict[str, _Opened] = field(default_factory=dict)
    _umems: Umems | None = None
    _numbers: dict[int, int] = field(default_factory=dict)  # id of a umem: its number

    def serve(self, sock: socket.socket) -> None:
        """Until the run is gone; then everything is undone."""
        try:
            while True:
                request, fds = passing.receive(sock)
                if fds:
                    raise ValueError("descriptors that nobody asked for")
                try:
                    answer, passed = self._answer(request)
                except XdpuError as error:
                    answer, passed = passing.failure(error), []
                passing.send(sock, answer, passed)
        except passing.Ended:
            pass
        except (KeyError, TypeError, ValueError) as error:
            self.note(f"a run said what makes no sense, {error!r}: ended")
        finally:
            self.close()

    def close(self) -> None:
        """Undo all; one failure does not keep the others from it."""
        with ExitStack() as every:
            for name in list(self._open):
                every.callback(self._close, name)

    def _answer(self, request: dict[str, Any]) -> Answer:
        name = str(request["iface"])
        if name not in self.ifaces:
            raise ConfigError(f"interface {name}", "the set-up process does not give it",
                              f"it gives {', '.join(self.ifaces)}")
        if request["do"] == "open":
            return self._grant(name, request)
        if name not in self._open:
            raise ConfigError(f"interface {name}", "is not open")
        match request["do"]:
            case "tap":
                return self._tap(name, str(request["title"]), int(request["queues"]))
            case "stand in":
                return self._stand_in(name)
            case "left":
                return {"left": self._open[name].port.statistics().get("filtered", 0)}, []
            case "close":
                self._close(name)
                return {}, []
        raise ValueError(f"request {request['do']!r}")

    def _grant(self, name: str, request: dict[str, Any]) -> Answer:
        if name in self._open:
            raise ConfigError(f"interface {name}", "is open already")
        options: dict[str, Any] = {
            key: value for key, value in dict(request["options"]).items()
            if isinstance(value, OPTIONS[key])}
        options["shapes"] = {str(word): passing.shape_of(told)
                             for word, told in options.get("shapes", {}).items()}
        wished = request["queues"]
        queues = wished if wished == "all" else [int(index) for index in wished]
        if self._umems is None:
            self._umems = Umems(int(request["workers"]), int(request["in_all"]), passed=True)
        shared = bool(request["shared"])
        sets_bytes = sum(one.memory_bytes for one in options["shapes"].values())
        self._check_memory(name, sets_bytes)  # before the kernel is asked for it
        with ExitStack() as undo:
            port = AfxdpPort.open(name, queues, umems=self._umems if shared else None,
                                  passed=True, **options)
            undo.callback(port.close)
            opened = _Opened(port, undo)
            fresh: dict[int, Umem] = {}
            for queue in port.opened:
                if id(queue.umem) not in self._numbers:
                    self._numbers[id(queue.umem)] = len(self._numbers)
                    fresh[self._numbers[id(queue.umem)]] = queue.umem
            opened.memory_bytes = sum(one.size_bytes for one in fresh.values()) + sets_bytes
            self._check_memory(name, opened.memory_bytes)
            opened.undo = undo.pop_all()
        self._open[name] = opened
        self.note(f"{name} opened: {port.mode}")
        answer = {
            "ifindex": port.ifindex, "mtu": port.mtu, "channels": port.channels,
            "mode": port.mode, "xdp_mode": port.xdp_mode, "filters": bool(options.get("wanted")),
            "umems": [{"number": number, "frames": one.frames} for number, one in fresh.items()],
            "queues": [{"index": queue.index, "umem": self._numbers[id(queue.umem)],
                        "shape": asdict(queue.shape), "asks": queue.load(rings.METADATA_ASKS)}
                       for queue in port.opened]}
        return answer, [*(one.fd for one in fresh.values()), *(q.fd for q in port.opened),
                        *(one.fd for one in port.sets.values())]

    def _check_memory(self, name: str, more_bytes: int) -> None:
        used = sum(one.memory_bytes for one in self._open.values()) + more_bytes
        if used > self.memory_bytes:
            raise OutOfMemory(f"interface {name}", f"{used >> 20} MiB of packet memory and sets of "
                              f"keys are more than the {self.memory_bytes >> 20} MiB that the "
                              "set-up process allows", "a smaller --ring-size, or a larger "
                              "--max-memory there")

    def _tap(self, name: str, title: str, queues: int) -> Answer:
        opened = self._open[name]
        if opened.tap is not None or not title.startswith("xdpu-"):
            raise ConfigError(f"tap {title}", "one for each interface, called xdpu-...")
        opened.tap = tap = open_tap(title, queues, True, nonblocking=True,
                                         offloads=True)
        opened.undo.callback(tap.close)
        return {"name": tap.name, "ifindex": tap.ifindex, "header": tap.vnet_hdr_bytes,
                "offloads": tap.offloads, "refused": tap.refused}, list(tap.fds)

    def _stand_in(self, name: str) -> Answer:
        opened = self._open[name]
        if opened.tap is None:
            raise ConfigError(f"interface {name}", "has no TAP to stand in for it")
        stand_in = takeover.Takeover(name, opened.tap.name, self.run_dir)
        opened.undo.callback(stand_in.restore)
        stand_in.apply()
        return {"notes": list(stand_in.notes)}, []

    def _close(self, name: str) -> None:
        self._open.pop(name).undo.close()
        self.note(f"{name} is the host's again")
