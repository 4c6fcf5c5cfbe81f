"""Options of the AF_XDP port: the table, what it cannot say, and opening a port as they ask."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control import options
from control.options import Option
from xdp_runtime.errors import ConfigError

if TYPE_CHECKING:
    from afxdp.map_filter import KeyShape
    from afxdp.port import AfxdpPort
    from xdp_runtime.object import Object

OPTIONS = (
    Option("-m --mode --xdp-mode", "XDP mode: native in the driver; generic (skb) in the stack, "
           "slower; auto: native, and if the driver refuses, generic",
           choices=("native", "generic", "auto", "skb"), default="native"),
    Option("-C --copy-mode", "whether packets are copied (AF_XDP); auto: only if the driver "
           "offers no zero-copy", choices=("auto", "copy", "zero-copy"), default="auto"),
    Option("--need-wakeup", "off: wake the kernel after each batch, asked or not (on)",
           choices=("on", "off"), default="on"),
    Option("--busy-poll-budget", "as --busy-poll=N: and the workers run the driver themselves, N "
           "packets a call, its interrupts put off meanwhile", "N", options.number(1, 65535), 0),
    Option("--ring-size", "entries of each ring of a queue, a power of two (2048)", "N",
           options.number(64, 1 << 15), 2048),
    Option("--frame-size", "bytes of a frame: 2048 or 4096; with --unaligned any between (4096)",
           "N", options.number(2048, 4096), 4096),
    Option("--frames", "frames of each queue, a power of two (twice the ring)", "N",
           options.number(128, 1 << 20), 0),
    Option("--unaligned", "frames at any address, of any size", type=bool),
    Option("--umem-pages", "pages frames are in: auto: huge ones if there are enough free",
           choices=("auto", "huge", "ordinary"), default="auto"),
    Option("--umem", "shared: one for all queues of a worker, so that a redirect between "
           "interfaces copies nothing; own: one a queue; auto: shared by several interfaces",
           choices=("auto", "shared", "own"), default="auto"),
    Option("--tx", "how packets leave: xsk: by AF_XDP's TX ring; live: redirected by the kernel as "
           "live frames; auto: batches by whichever turns out to be faster",
           choices=("auto", "xsk", "live"), default="auto"),
    Option("--tx-metadata", "auto: where a run has veths, checksums that local senders left to "
           "hardware are asked of the driver when packets leave; off: they leave as they are",
           choices=("auto", "off"), default="auto"),
    Option("--filter", "packets to take, such as 'tcp port 80', 'not (icmp or src 10.0.0.0/8)' or "
           "'map:vips:dst,dport' (keys of the object's map); all others go to the stack untouched",
           "EXPRESSION"),
    Option("--setup-socket", "of an xdpu setup, which then does all that needs privileges", "PATH",
           default=""),
)
_DEFAULTS: dict[str, Any] = {
    next(name for name in option.names.split() if name.startswith("--"))[2:].replace("-", "_"):
    False if option.type is bool else option.default for option in OPTIONS}


def check(args: Namespace) -> None:
    """Raises ConfigError for options of this port with another one."""
    if all(spec.kind != "afxdp" for spec in args.ports.values()):
        given = [name for name, default in _DEFAULTS.items() if getattr(args, name) != default]
        if given:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(names, f"{'goes' if len(given) == 1 else 'go'} with --port afxdp")
    if args.filter is not None:
        from afxdp.filter import parse
        parse(args.filter)  # also an empty one, such as a variable that has no value
    if args.setup_socket:
        _check_setup(args)
    if args.busy_poll_budget:
        args.busy_poll = True


def shapes(text: str | None, obj: Object) -> dict[str, KeyShape]:
    """How packets' keys are made for the maps that a filter asks.  Raises ConfigError."""
    if text is None or "map:" not in text:
        return {}
    from afxdp import filter as packet_filter
    from afxdp import map_filter
    return {word: map_filter.shape(word, obj)
            for word in packet_filter.words_of_maps(packet_filter.parse(text))}


def _check_setup(args: Namespace) -> None:
    """What a set-up process does not give."""
    if args.tx == "live":
        raise ConfigError("--tx live and --setup-socket", "exclude each other: live frames need "
                          "privileges, which the set-up process keeps to itself", "--tx xsk")
    if args.umem_pages == "huge":
        raise ConfigError("--umem-pages huge and --setup-socket", "exclude each other: memory that "
                          "a set-up process passes on is in ordinary pages", "--umem-pages auto")


def share(args: Namespace, counts: Sequence[int], workers: int) -> None:
    """Decide which queues share a umem, once it is known how many each AF_XDP interface has."""
    from afxdp.umem import Umems

    args.checksums = _may_be_unfinished(args)
    wanted = counts and (args.umem == "shared" or (args.umem == "auto" and len(counts) > 1))
    args.umems = Umems(workers, sum(counts)) if wanted else None
    args.setup = None
    if args.setup_socket:
        from afxdp.granted import Grants
        args.setup = Grants(Path(args.setup_socket))


def _may_be_unfinished(args: Namespace) -> bool:
    """May packets come in whose checksum a local sender left to hardware?  From a veth."""
    from afxdp import interface

    return args.tx_metadata == "auto" and any(
        interface.query(spec.name).driver == "veth" for spec in args.ports.values()
        if spec.kind == "afxdp")


def open_port(args: Namespace, name: str) -> AfxdpPort:
    """Raises what AfxdpPort.open raises."""
    from afxdp.port import AfxdpPort

    wishes = {"mode": args.mode, "copy_mode": args.copy_mode, "frame_size": args.frame_size,
              "ring_size": args.ring_size, "need_wakeup": args.need_wakeup == "on",
              "promisc": args.promisc, "unaligned": args.unaligned, "frames": args.frames,
              "busy_poll": args.busy_poll_budget, "wanted": args.filter or "", "frags": args.frags,
              "shapes": args.shapes, "hints": asks(args), "checksums": args.checksums}
    if args.setup is not None:
        shared = args.umems is not None
        return args.setup.open(name, args.queue, args.umems.workers if shared else 1,
                               args.umems.queues if shared else 1, shared, wishes)
    return AfxdpPort.open(name, args.queue, pages=args.umem_pages, umems=args.umems,
                          tx=way_out(args), **wishes)


def asks(args: Namespace) -> bool:
    """Is the driver asked for metadata?"""
    return bool(args.metadata)


def way_out(args: Namespace) -> str:
    """How packets leave: the choice is there for who has privileges."""
    return "xsk" if args.setup_socket else str(args.tx)
