"""A run's side of the set-up process: ports and TAPs that somebody with privileges opened for us.

The run maps the umem and the rings from the descriptors it gets, and drives them as its own; it
never touches what needs privileges.  granting.py is the other side.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from afxdp import passing, rings
from afxdp.interface import Interface
from afxdp.map_filter import KeyShape
from afxdp.mirror import KeySet
from afxdp.port import AfxdpPort, kind_of
from afxdp.queue import Queue, Shape
from afxdp.umem import Umem
from dataplane.tap import TapPort
from dataplane.tap_device import TapDevice
from xdp_runtime.errors import PortError

_PATIENCE_S = 20.0


class Grants:
    """A connection to a set-up process.  Raises PortError; close() gives all back."""

    def __init__(self, path: Path) -> None:
        self.path, self.gone = path, False
        self._umems: dict[int, Umem] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise PortError(f"set-up socket {path}", error.strerror or str(error),
                            "start xdpu setup as root, for this user and with this --socket") \
                from error
        self._socket.settimeout(_PATIENCE_S)

    def check(self) -> None:
        """Raises PortError once the set-up process is gone."""
        ready = select.select([self._socket], [], [], 0)[0]
        if ready:  # it says nothing unasked
            raise self._ended()

    def _ended(self) -> PortError:
        self.gone = True
        return PortError(f"set-up socket {self.path}", "the set-up process ended, and with it the "
                         "sockets' attachment", "start it, and run again")

    @contextmanager
    def unless_gone(self) -> Iterator[None]:
        """Passes over what fails because the set-up process is gone."""
        try:
            yield
        except PortError:
            if not self.gone:
                raise

    def ask(self, do: str, iface: str, **more: Any) -> tuple[dict[str, Any], list[int]]:
        """Raises what was refused there, too."""
        try:
            passing.send(self._socket, {"do": do, "iface": iface, **more})
            answer, fds = passing.receive(self._socket)
        except (passing.Ended, ValueError) as error:
            raise self._ended() from error
        passing.raise_failure(answer)
        return answer, fds

    def open(self, iface: str, queues: str | Sequence[int], workers: int, in_all: int,
             shared: bool, options: dict[str, Any]) -> AfxdpPort:
        """As AfxdpPort.open, done there; `in_all` queues of all interfaces, for the umems' size."""
        shapes: Mapping[str, KeyShape] = options["shapes"]
        told = {**options, "shapes": {word: asdict(one) for word, one in shapes.items()}}
        answer, fds = self.ask("open", iface, queues=queues, workers=workers, in_all=in_all,
                               shared=shared, options=told)
        program = GrantedProgram(self, iface, answer["xdp_mode"], bool(answer["filters"]))
        opened: list[Queue] = []
        try:
            made = [Shape(**one["shape"]) for one in answer["queues"]]
            for one in answer["umems"]:
                layout = next(shape.layout for shape, queue in zip(made, answer["queues"],
                                                                   strict=True)
                              if queue["umem"] == one["number"])
                self._umems[one["number"]] = Umem(layout, one["frames"], fd=fds.pop(0))
            for shape, one in zip(made, answer["queues"], strict=True):
                umem = self._umems[one["umem"]]
                umem.users += 1
                opened.append(Queue(iface, one["index"], shape, umem, fds.pop(0)))
                opened[-1].store(rings.METADATA_ASKS, one["asks"])
            for word, one in shapes.items():
                program.sets[word] = KeySet(one, fds.pop(0))
            found = Interface(iface, answer["ifindex"], answer["mtu"], "", answer["channels"])
            port = AfxdpPort(found, program, opened, None, None,
                             f"{answer['mode']}; set up by {self.path}",
                             kind=kind_of(options["frags"], "xsk", options["hints"],
                                          options["checksums"]))
            port.promiscuous = options["promisc"]
            return port
        except BaseException:
            for queue in opened:
                queue.close()
            for fd in fds:
                os.close(fd)
            program.close()
            raise

    def open_tap(self, iface: str, title: str, queues: int, frame_size: int) -> TapPort:
        answer, fds = self.ask("tap", iface, title=title, queues=queues)
        return TapPort(TapDevice(answer["name"], answer["ifindex"], tuple(fds), answer["header"],
                                 answer["offloads"], answer["refused"]), frame_size)

    def close(self) -> None:
        self._socket.close()


@dataclass
class GrantedProgram:
    """A redirect program that is attached by the set-up process."""

    grants: Grants
    iface: str
    mode: str
    filters: bool
    sets: dict[str, KeySet] = field(default_factory=dict)
    _closed: bool = False
    _left: int = 0

    @property
    def left(self) -> int:
        """As it was last known, once the set-up process is gone."""
        if self.filters and not self._closed:
            with self.grants.unless_gone():
                self._left = int(self.grants.ask("left", self.iface)[0]["left"])
        return self._left

    def check(self) -> None:
        """Raises PortError once it is not attached any more."""
        self.grants.check()

    def close(self) -> None:
        """The interface is the host's again: TAP, addresses and all.  A set-up process that is gone
        has seen to that."""
        if not self._closed:
            self._closed = True
            for one in self.sets.values():
                one.close()
            with self.grants.unless_gone():
                self.grants.ask("close", self.iface)


@dataclass
class StandIn:
    """As dataplane.takeover.Takeover, done by the set-up process and undone with the port."""

    grants: Grants
    iface: str
    notes: tuple[str, ...] = ()

    def apply(self) -> None:
        answer, _ = self.grants.ask("stand in", self.iface)
        self.notes = tuple(answer["notes"])

    def restore(self) -> None:
        """With the port; nothing is left to do here."""
