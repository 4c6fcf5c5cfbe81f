"""xdpu, the command line: verbs, options, and how an error is told.

Whatever a verb needs is imported when it is called, so that `xdpu --help` answers at once.  Exit
codes: 0 done, 1 failed, 2 usage, 3 interface, driver or capture file, 4 object, verifier or
compiler, 5 memory, 128 + n ended by signal n before it began.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from control import afxdp_options, options, targets
from control.options import Option, Verb
from control.signals import Signals
from xdp_runtime.errors import ConfigError, OutOfMemory, VerifyError, XdpuError

_OBJECT = Option("OBJ", "object file with XDP programs, as clang makes it", required=True)
_PROGRAM = Option("-n --prog-name", "program of the object (default: its first XDP program)",
                  "NAME")
_RUN = Option("RUN", "name of the run, or one of its interfaces", required=True)
_JSON = Option("-j --json", "JSON on standard output", type=bool)
_VERBOSE = Option("-v --verbose", "say more; of an error, all", type=bool, counted=True)
_SET_MAP = Option("--set-map", "a map entry before the first packet, numbers or hex:AABB..; may be "
                  "repeated", "NAME=KEY:VALUE", many=True)
_MAP_MEMORY = Option("--max-map-memory", "refuse a program whose maps may come to more than this "
                     "together, such as 500M or 2G; 0: no limit (0)", "SIZE", options.size, 0)
_SETTINGS = (
    Option("--set-global", "a global variable's value before the start: a number, an enumerator, a "
           "text, or JSON; may be repeated", "NAME=VALUE", many=True),
    Option("--map-entries", "max_entries of a map, where the object leaves it to whoever loads it; "
           "may be repeated", "NAME=N", many=True),
    Option("--btf", "file with the kernel's types that CO-RE relocations are for (the running "
           "kernel's)", "FILE"),
)
_OPT = Option("--opt", "optimisation level of the compiler", type=options.number(0, 3), default=3,
              metavar="LEVEL", hidden=True)

_CLASS = (
    Option("--class", "extension class the program is bound to: it is refused if it does more "
           "than the class grants", "NAME"),
    Option("--policy", "file with extension classes; --class may go if it has only one", "FILE"),
)

# Named, not imported: `bench` is above this room.
_BENCHES = (
    Verb("bench prog", "Measure a program: ns a packet, here and in the kernel.",
         "bench.prog:main_of", (
             Option("OBJ", "object files, or names of examples (default: all examples)", "",
                    many=True),
             _PROGRAM,
             Option("--packets", "a pcap or pcapng file, or generated: one packet of each kind "
                    "(generated)", "FILE", default="generated"),
             _SET_MAP,
             Option("--engines", "of kernel, jit, interp (kernel,jit)", "LIST", options.names,
                    ("kernel", "jit")),
             Option("--peer", "another engine to measure beside: a shared object as of "
                    "bench/peers/peer.h; may be repeated", "FILE.so", many=True),
             Option("--cold", "with caches emptied before each packet, too", type=bool),
             Option("--flows", "the packet as so many flows, too: 1,65536,1048576", "LIST",
                    options.counts, ()),
             Option("--repeat", "runs a sample (200000)", "N", options.number(100, 10**8),
                    200_000),
             Option("--rounds", "samples of each engine, in turns (15)", "N",
                    options.number(1, 1000), 15),
             Option("--cpu", "the CPU it is measured on (the last)", "N",
                    options.number(0, 4095)),
             Option("--out", "folder for bench.json", "DIR"),
             _JSON, _VERBOSE),
         "The engines have to agree on verdict, bytes and maps first: where they do not, that is "
         "the result,\nwithout a figure.  Exit code 1: they do not agree, or the result could not "
         "be written; 130: Ctrl-C, with\nwhat was measured until then."),
    Verb("bench compare", "What changed beyond noise between two reports.",
         "bench.compare:main_of", (
             Option("A", "bench.json of the first; newest: the last report in bench/results",
                    required=True),
             Option("B", "bench.json of the second", required=True),
             Option("--all", "show what did not change, too", type=bool),
             Option("--ratios", "only kernel / ours, which other machines have in common",
                    type=bool), _JSON, _VERBOSE),
         "Information, not a gate: the exit code is 0 whatever changed."),
    *(Verb(f"bench {name}", text, f"bench.{module}:main", is_passed_on=True)
      for name, module, text in (
          ("all", "all", "All benches as a report: JSON, a page with plots, tables."),
          ("io", "io", "Packets a second, loss and latency, beside the kernel and a C loop."),
          ("maps", "maps", "What a map operation costs, here and in the kernel."),
          ("micro", "micro.__main__", "What each part of the eBPF core costs."),
          ("verify", "verify", "How long programs take to verify, here and in the kernel."),
          ("load", "compile_time", "How long programs take to compile, and how much memory."),
          ("start", "start", "From the start of xdpu run to its first packet."))),
)

VERBS = (
    Verb("run", "Run an XDP program on interfaces, or on a capture file.", "control.run:run", (
        _OBJECT,
        Option("--iface", "interfaces to run on; a redirect between them stays in user space.  "
               "With its kind in front, a port of another kind: afpacket:eth1, tap:NAME, "
               "dpdk:DEVICE, pcap:IN,out=OUT, xsk:PATH,dev=IF; may be repeated",
               "[KIND:]IF[,IF2]", many=True),
        Option("--pcap", "run on the packets of this pcap or pcapng file instead", "IN"),
        Option("--out", "with --pcap: write each packet and its verdict to this pcapng file, "
               "- for standard output", "OUT"),
        _PROGRAM, _SET_MAP, *_SETTINGS, _MAP_MEMORY,
        Option("--port", "how to reach the interface: afxdp, afpacket, or tap (a new one); or "
               "instead of it a device of DPDK with its arguments, several with ; between",
               "KIND|dpdk:DEV", options.port, "afxdp"),
        Option("--dpdk-args", "options for DPDK's EAL, such as '-l 2 --no-huge -m 1024'", "ARGS",
               default="", of_others=True),
        Option("--queue", "receive queues of each interface: all, 0-3, or 0,2", "LIST",
               options.queues, "all"),
        *afxdp_options.OPTIONS,
        Option("-b --batch-size", "packets taken at once (64)", "N", options.number(1, 256), 64),
        Option("-i --interval", "seconds between status lines (1)", "S", options.seconds, 1.0),
        Option("-d --duration", "end after so many seconds; 0: on a signal (0)", "S",
               options.duration, 0.0),
        Option("--busy-poll", "never sleep: a core a worker, lowest latency; --busy-poll=N is "
               "--busy-poll-budget N", type=bool, value="--busy-poll-budget"),
        Option("--look-ahead", "fetch what a batch of packets will look up in large maps; auto: "
               "if it is faster, which is tried now and then (auto)",
               choices=("auto", "on", "off"), default="auto"),
        Option("--baseline", "without machine code in the cache, begin with baseline code, which "
               "is there at once, and go on by optimised code when it is compiled; off: wait for "
               "that (auto)", choices=("auto", "off"), default="auto"),
        Option("--cpu", "CPUs the workers are pinned to: a list, none, or auto, near the "
               "interfaces and a core each (auto)", "LIST",
               options.cpus, "auto"),
        Option("--stack", "the way of XDP_PASS into the kernel's stack: skbs or the kernel's live "
               "frames, which come in by the interface; a TAP, which stands in for it; auto takes "
               "the first where it can (auto)",
               choices=("auto", "skb", "live", "tap"), default="auto"),
        Option("--no-stack", "no TAP for XDP_PASS: such frames are counted and dropped",
               type=bool),
        Option("--promisc", "receive frames for other addresses as well", type=bool),
        Option("--name", "name of the run (default: its interfaces)", "NAME"),
        Option("--ring", "a ring that another process reads (dataplane/ring.py), for this entry of "
               "an XSKMAP; may be repeated", "NAME=MAP[INDEX]", targets.ring, many=True),
        Option("--trace", "print what the program says by bpf_printk", type=bool),
        Option("--trace-aborted", "print the first N aborted packets, with program and reason",
               "N", options.number(1, 100_000), 0),
        *_CLASS,
        _JSON, _VERBOSE, _OPT,
    ), "Ctrl-C ends the run and puts everything back; Ctrl-\\ shows more, or less."),
    Verb("replace", "Replace the program of a run by another, between two batches of packets.",
         "control.remote:replace", (
             _RUN, _OBJECT, _PROGRAM, _SET_MAP, *_SETTINGS, _JSON, _VERBOSE),
         "Maps of the same name and definition go on with their content, global variables begin "
         "anew.  If the object is refused, the old program stays."),
    *(Verb(verb, text, f"control.remote:{verb}", (
        _RUN, Option("IFACE", "interfaces (default: all of the run)", "", many=True), _JSON,
        _VERBOSE)) for verb, text in (
            ("pause", "Let a run leave packets where they are; queues run full, then overflow."),
            ("resume", "Let a run that was paused go on."))),
    *(Verb(f"port {verb}", text, f"control.remote:{verb}", (
        _RUN, Option("IFACE", "the interface", required=True), _JSON, _VERBOSE)) for verb, text in (
            ("add", "Let a run take one more interface."),
            ("remove", "Let a run give an interface back to the host."))),
    Verb("capture", "Show packets of a run with their verdicts, or record them as pcapng.",
         "control.capture:run", (
             Option("FILTER", "which packets, in the words of xdpu run --filter, such as tcp port "
                    "80", "", many=True),
             Option("-i --iface", "name of the run, or one of its interfaces", "NAME",
                    required=True),
             Option("-w --write", "write pcapng to this file, or - for standard output (default: "
                    "a line a packet is printed)", "FILE"),
             Option("-x --hex", "print the bytes of each packet as well", type=bool),
             Option("--at", "packets as they came in, or as the program left them with its "
                    "verdict, or both: entry,exit (exit)", "POINTS", options.points, ("exit",)),
             Option("-s --snaplen", "take so many bytes of each packet; 0: all (0)", "N",
                    options.number(0, 1 << 18), 0),
             Option("-c --count", "end after so many packets; 0: on a signal (0)", "N",
                    options.number(0, 2**31 - 1), 0),
             Option("-d --duration", "end after so many seconds; 0: on a signal (0)", "S",
                    options.duration, 0.0),
             Option("--sample", "take one packet in N (1)", "N", options.number(1, 2**31 - 1), 1),
             Option("-B --buffer", "memory for each queue, 1M to 1G; what finds no room is lost "
                    "and counted (8M; 1M where packets are printed)", "SIZE", options.buffer),
             _JSON, _VERBOSE),
         "A filter is asked once, as the packet came in.  The run never waits for the capture."),
    Verb("stop", "End a run, and wait until all is put back.", "control.remote:stop",
         (_RUN, _JSON, _VERBOSE)),
    Verb("prog run", "Run a program on one packet.", "control.prog:run", (
        _OBJECT, _PROGRAM, _SET_MAP, *_SETTINGS, _MAP_MEMORY,
        Option("--data-in", "the packet: a file of bytes, - for standard input, or hex:AABB..",
               "FILE", required=True),
        Option("--data-out", "where the packet goes afterwards; - prints it", "FILE"),
        Option("--repeat", "run so often, each time on the packet as it was; the kernel goes on "
               "with it as it is (1)", "N", options.number(1, 2**31 - 1), 1),
        Option("--engine", "compiled (jit), interpreted, or by the kernel (jit)",
               choices=("jit", "interp", "kernel"), default="jit"),
        Option("--ifindex", "interface index the packet came in by", "N",
               options.number(0, 2**31 - 1), 0),
        *_CLASS, _JSON, _VERBOSE, _OPT,
    )),
    Verb("check", "Are the programs of an object safe?  If not, why, and what would help.",
         "control.check:run", (
        _OBJECT,
        Option("-n --prog-name", "this program only (default: all XDP programs of the object)",
               "NAME"),
        *_SETTINGS,
        Option("--explain", "show what is known of each instruction", type=bool),
        Option("--second-opinion", "ask the kernel's verifier, too; that the two disagree is a "
               "failure", choices=("kernel",)),
        *_CLASS, _JSON, _VERBOSE,
    ), "Exit code 0: safe; 4: not proven, or the two disagree."),
    *(Verb(f"map {verb}", text, "control.map:run_" + verb, (
        Option("MAP", words, "", many=True), Option("--run", "of this run only", "NAME"),
        _JSON, Option("-p --pretty", "the same JSON, indented", type=bool), _VERBOSE),
        "MAP is: name NAME | id N | pinned RUN/NAME or a file.  DATA is one number a byte, such "
        "as 10 0 0 1 or 0x0a 0 0 1, or the word hex and pairs of digits.")
      for verb, text, words in (
        ("show", "List the maps of runs.", "[MAP]"),
        ("list", "The same.", "[MAP]"),
        ("dump", "Print all entries of a map.", "MAP"),
        ("lookup", "Print the value of a key.", "MAP key DATA"),
        ("getnext", "Print the key behind a key, or the first.", "MAP [key DATA]"),
        ("update", "Write an entry.", "MAP [key DATA] [value DATA] [any|exist|noexist]; a target "
         "of redirects also as: value dev IF|ifindex N|qsize N [prog NAME], value xsk RING; a "
         "program as: value name PROGRAM; a map in a map as: value MAP"),
        ("delete", "Remove an entry.", "MAP key DATA"),
        ("push", "Push a value onto a stack.", "MAP value DATA"),
        ("pop", "Take the top value off a stack.", "MAP"),
        ("enqueue", "Append a value to a queue.", "MAP value DATA"),
        ("dequeue", "Take the first value out of a queue.", "MAP"),
        ("peek", "Print the next value of a queue or stack.", "MAP"),
        ("freeze", "Refuse further writes but by programs.", "MAP"))),
    Verb("dump", "Show a program at a stage of its compilation.", "control.dump:run", (
        _OBJECT, _PROGRAM, *_SETTINGS,
        Option("--what", "bytecode with source (asm), control flow for Graphviz (cfg), LLVM IR "
               "(ir), machine code (native)", choices=("asm", "cfg", "ir", "native"),
               default="asm"),
        Option("--stage", "of the IR: as lowered, or optimised", choices=("lowered", "optimised"),
               default="optimised"),
        *_CLASS, _JSON, _VERBOSE, _OPT,
    )),
    Verb("aot", "Compile a program ahead of time: a library, an executable, or an object file.",
         "control.aot:run", (
             _OBJECT, _PROGRAM, *_SETTINGS,
             Option("-o --out", "what to write: PROG.so with the functions of xdpu.h, PROG.o, or "
                    "with --standalone an executable", "FILE", required=True),
             Option("--standalone", "an executable that runs on a capture file or an interface "
                    "and needs no Python", type=bool),
             Option("--workers", "threads that may run it, a copy of per-CPU values each (1)", "N",
                    options.number(1, 64), 1),
             Option("--target", "architecture, as x86_64 or aarch64 (this machine's); another one "
                    "makes an object file", "ARCH"),
             Option("--cpu", "LLVM's name of the CPU (this machine's, or any of --target)", "NAME"),
             *_CLASS, _JSON, _VERBOSE)),
    Verb("policy check", "Say what a program does that its extension class does not grant.",
         "control.policy:run_check", (_OBJECT, _PROGRAM, *_SETTINGS, *_CLASS, _JSON, _VERBOSE)),
    Verb("policy explain", "Say which instructions use each grant, of a class or of the least.",
         "control.policy:run_explain", (_OBJECT, _PROGRAM, *_SETTINGS, *_CLASS, _JSON, _VERBOSE)),
    Verb("policy infer", "Print the class that grants the least a program needs.",
         "control.policy:run_infer", (
             _OBJECT, _PROGRAM, *_SETTINGS,
             Option("--class", "name of the class (default: the program's)", "NAME"),
             _JSON, _VERBOSE)),
    Verb("policy host", "Check a host's specification against its binary, or derive it from there.",
         "control.policy:run_host", (
             Option("SPEC", "specification (default: the one in the binary's annotations)"),
             Option("--binary", "the host's binary, with debug information", "FILE",
                    required=True), _JSON, _VERBOSE)),
    *_BENCHES,
    Verb("setup", "Do what needs privileges for runs of an ordinary user, and undo it after them.",
         "control.setup:run", (
             Option("--user", "the user, by name or number", "NAME", required=True),
             Option("--socket", "where the runs connect: xdpu run --setup-socket PATH", "PATH",
                    required=True),
             Option("--iface", "interfaces they may have", "IF[,IF2]", options.names,
                    required=True),
             Option("--max-memory", "locked memory for packets that a run may have (1G)", "SIZE",
                    options.size, 1 << 30),
             _JSON, _VERBOSE), "Ctrl-C ends it and all runs it set up."),
    Verb("features", "What this machine and an interface can do, and how to mend what is missing.",
         "control.status:features",
         (Option("IFACE", "an interface to ask about"), _JSON, _VERBOSE)),
    Verb("status", "List the runs of this machine with their counters, or tell all of one.",
         "control.status:status", (
             Option("RUN", "name of a run, or one of its interfaces"), _JSON, _VERBOSE)),
    Verb("top", "Show what runs do at the moment, again and again.", "control.top:run", (
        Option("RUN", "name of a run, or one of its interfaces (default: all)"),
        Option("-i --interval", "seconds between looks (1)", "S", options.seconds, 1.0),
        Option("-c --count", "end after so many looks; 0: on a signal (0)", "N",
               options.number(0, 2**31 - 1), 0),
        _JSON, _VERBOSE)),
    Verb("metrics", "The counters of all runs, for Prometheus.", "control.metrics:run", (
        Option("--listen", "serve them over HTTP until a signal", "ADDRESS:PORT", options.address),
        _JSON, _VERBOSE)),
    Verb("clean", "Put back what runs that died left behind.", "control.status:clean",
         (_JSON, _VERBOSE)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code.  Without `argv` this is the process's one purpose."""
    Signals.process_ends = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # nobody reads any more; keep the interpreter from trying again at its end
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        return _tell(OutOfMemory("memory", "there is not enough"), argv)
    except XdpuError as error:
        return _tell(error, argv)
    except Exception as error:
        return _tell(_defect(error), argv)


def _run(argv: list[str]) -> int:
    if argv and argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv and argv[0] in ("-V", "--version"):
        print(f"xdpu {_version()}")
        return 0
    verb, rest = options.find_verb(argv, VERBS)
    module, _, name = verb.function.partition(":")
    if verb.is_passed_on:
        try:
            return int(_find(verb, module, name)(rest))
        except SystemExit as end:  # its parser's help or complaint, which has been printed
            return end.code if isinstance(end.code, int) else 0
    try:
        args = options.build_parser(verb).parse_args(rest)
    except SystemExit:  # --help, which has been printed
        return 0
    function: Callable[[Any], int] = _find(verb, module, name)
    return function(args)


def _find(verb: Verb, module: str, name: str) -> Any:
    """The verb's function.  Raises ConfigError where it is not part of an installed xdpu."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tests":
            raise
        raise ConfigError(f"xdpu {verb.words}", "builds its interfaces with the tests, which are "
                          "not installed", "run it in a clone of the repository") from error


def usage() -> str:
    width = max(len(v.words) for v in VERBS)
    verbs = "".join(f"  {v.words:<{width}}  {v.help}\n" for v in VERBS)
    return ("usage: xdpu VERB ...\n\nXDP programs, unmodified, in user space.\n\n" + verbs +
            "\n  xdpu VERB --help says more.  A verb may be shortened: xdpu feat eth0\n"
            "  xdpu --version\n")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version("xdpu")
    except PackageNotFoundError:
        return "(not installed)"


def _defect(error: Exception) -> XdpuError:
    import traceback
    text = str(error).splitlines()
    what = f"{type(error).__name__}: {text[0]}" if text and text[0] else type(error).__name__
    return XdpuError("unexpected", what, "-v shows where",
                     "".join(traceback.format_exception(error)))


def _tell(error: XdpuError, argv: Sequence[str]) -> int:
    short = {letter for word in argv if word[:1] == "-" and word[1:2] != "-" for letter in word[1:]}
    with contextlib.suppress(OSError, ValueError):
        pretty = "--pretty" in argv or (argv[:1] == ["map"] and "p" in short)
        if pretty or "j" in short or "--json" in argv:
            what: dict[str, object] = {
                "kind": error.kind, "message": str(error), "hint": error.mend}
            if isinstance(error, VerifyError) and error.insn is not None:
                what["insn"] = error.insn
            print(json.dumps({"error": what}, indent=4 if pretty else None), flush=True)
    with contextlib.suppress(OSError, ValueError):
        if error.detail and ("v" in short or "--verbose" in argv):
            print(error.detail.rstrip(), file=sys.stderr)
        print(f"xdpu: {error}", file=sys.stderr, flush=True)
    return error.exit_code
