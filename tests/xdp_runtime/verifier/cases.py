"""Cases of the verifier as text: a program in, a verdict and a kind of message out.

`cases/README.md` has the format; `Case.object` is what a loader would have made of the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.xdp_runtime.verifier.btf_text import BtfBuilder
from xdp_runtime import isa
from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.object import Function, GlobalKind, MapFlag, MapSpec, MapType, Object, ProgramSpec

DIRECTORY = Path(__file__).with_name("cases")
KINDS = ("bounds", "null", "uninit", "type", "readonly", "align", "stack", "context", "helper",
         "map", "loop", "call", "reference", "lock", "return", "control", "arithmetic", "budget")
FIELDS = ("case", "maps", "prog", "types", "functions", "asm", "verdict", "kind", "kernel", "ours",
          "license")
_LABEL = re.compile(r"([A-Za-z_]\w*):")


@dataclass(frozen=True)
class Case:
    name: str
    path: Path
    line: int  # where `case:` stands
    text: str  # assembly, snippets put in
    maps: str = ""
    prog: str = "xdp"
    types: str = ""
    functions: str = ""
    license: str = "GPL"
    verdict: str = "?"  # accept, refuse; ? is for confirm.py to fill in
    kind: str = ""
    kernel: str = ""
    ours: str = ""
    at: dict[str, int] = field(default_factory=dict, compare=False)  # line of each field

    @property
    def id(self) -> str:
        return f"{self.path.stem}:{self.name}"

    @property
    def our_verdict(self) -> str:
        """What our verifier is to say: the kernel's verdict, unless a difference is expected."""
        return self.ours.split()[0] if self.ours else self.verdict

    @cached_property
    def btf(self) -> BtfBuilder | None:
        """Types of functions and map values; None when the case needs none."""
        builder = BtfBuilder()
        for one in _split(self.types):
            builder.struct(one)
        for one in _split(self.functions):
            builder.function(one)
        for name in self.kfuncs:
            builder.extern(name)
        return builder if self.types or self.functions or self.kfuncs else None

    @cached_property
    def kfuncs(self) -> tuple[str, ...]:
        """Kernel functions the program calls, as `call kfunc:NAME`."""
        return tuple(dict.fromkeys(re.findall(r"\bkfunc:(\w+)", self.text)))

    @cached_property
    def object(self) -> Object:
        """Kernel functions are called by the id that their extern has in the object's own BTF."""
        specs = tuple(parse_map(one, self.btf) for one in _split(self.maps))
        text, builder = self.text, self.btf
        if builder is not None:
            text = re.sub(r"\bkfunc:(\w+)", lambda m: f"kfunc#{builder.externs[m[1]]}", text)
        insns = assemble(text, [spec.name for spec in specs])
        program = ProgramSpec("main", self.prog, self.prog, insns, self._functions(insns))
        btf = Btf.parse(builder.encode()) if builder is not None else None
        return Object(self.id, (program,), specs, self.license, btf=btf)

    def _functions(self, insns: isa.Insns) -> tuple[Function, ...]:
        starts = {0: "main"}
        labels = {slot: name for name, slot in self._labels().items()}
        for slot, insn in enumerate(insns):
            if isinstance(insn, isa.CallLocal | isa.LoadFunc):
                target = slot + 1 + insn.off
                starts.setdefault(target, labels.get(target, f"at_{target}"))
        for name, slot in self._labels().items():
            if self.btf is not None and name in self.btf.functions:
                starts[slot] = name
        order = sorted(starts)
        ends = [*order[1:], len(insns)]
        declared = self.btf.functions if self.btf is not None else {}
        return tuple(Function(starts[start], start, end,
                              start > 0 and declared.get(starts[start], (0, False))[1])
                     for start, end in zip(order, ends, strict=True))

    def _labels(self) -> dict[str, int]:
        labels: dict[str, int] = {}
        slot = 0
        for raw in self.text.splitlines():
            line = raw.split(";")[0].strip()
            label = _LABEL.fullmatch(line)
            if label:
                labels[label[1]] = slot
            elif line:
                slot += 2 if line.endswith(" ll") else 1
        return labels


def _split(text: str) -> list[str]:
    """At `;`, but not at those within braces."""
    return [part.strip() for part in re.split(r";(?![^{]*\})", text) if part.strip()]


def parse_map(text: str, btf: BtfBuilder | None = None) -> MapSpec:
    """`NAME TYPE KEY VALUE ENTRIES [flags=a|b] [rodata=HEX] [data=HEX] [inner=hash/4/8/16]
    [extra=N] [value=STRUCT]`"""
    name, kind, key, value, entries, *options = text.split()
    spec = dict(option.split("=", 1) for option in options)
    flags = sum(MapFlag[flag.upper()] for flag in spec.pop("flags", "").split("|") if flag)
    global_kind, initial = GlobalKind.NONE, b""
    for word, which in (("rodata", GlobalKind.RODATA), ("data", GlobalKind.DATA)):
        if word in spec:
            global_kind, initial = which, bytes.fromhex(spec.pop(word))
    inner = None
    if "inner" in spec:
        inner = parse_map("inner " + spec.pop("inner").replace("/", " "))
    key_type = value_type = 0
    if "value" in spec:
        if btf is None:
            raise ValueError(f"map {name}: value={spec['value']} needs types:")
        key_type, value_type = btf.base("u32" if key == "4" else "u64"), btf.structs[
            spec.pop("value")][0]
    extra = int(spec.pop("extra", "0"))
    if spec:
        raise ValueError(f"map {name}: unknown option {', '.join(spec)}")
    return MapSpec(name, MapType[kind.upper()], int(key), int(value), int(entries), flags,
                   global_kind=global_kind, initial=initial, inner=inner, map_extra=extra,
                   key_type_id=key_type, value_type_id=value_type)


def read_cases(path: Path) -> Iterator[Case]:
    """The cases of a file, in order.  Raises ValueError naming the line."""
    defaults: dict[str, str] = {}
    snippets: dict[str, list[str]] = {}
    fields: dict[str, str] = {}
    at: dict[str, int] = {}
    asm: list[str] = []
    block: list[str] | None = None

    def done() -> Iterator[Case]:
        if fields:
            yield Case(fields.pop("case"), path, at["case"],
                       _expand("\n".join(asm), snippets, path, at["case"]),
                       **{**defaults, **fields}, at=dict(at))  # type: ignore[arg-type]

    for number, raw in enumerate([*path.read_text().splitlines(), "case: end"], 1):
        line = raw.split("#")[0].rstrip() if not raw.startswith("kernel:") else raw.rstrip()
        if not line.strip():
            continue
        if line[0] in " \t":
            if block is None:
                raise ValueError(f"{path.name}:{number}: indented line outside of a block")
            block.append(line.strip())
            continue
        key, _, value = line.partition(":")
        value = value.strip()
        if key.startswith("let "):
            block = snippets[key[4:].strip()] = []
            continue
        if key not in FIELDS:
            raise ValueError(f"{path.name}:{number}: unknown field {key!r}")
        if key == "case":
            yield from done()
            fields, at, asm = {}, {}, []
        elif key in at:
            raise ValueError(f"{path.name}:{number}: a second {key}:")
        block = asm if key == "asm" else None
        if key == "asm":
            continue
        if key == "case" or fields:
            fields[key], at[key] = value, number
        else:
            defaults[key] = value
        if key == "kernel":
            fields[key] = value.strip('"')


def _expand(asm: str, snippets: dict[str, list[str]], path: Path, line: int) -> str:
    """`@NAME(a, b)` becomes the snippet, with $1 and $2 replaced."""
    out: list[str] = []
    for text in asm.splitlines():
        call = re.fullmatch(r"@(\w+)(?:\((.*)\))?", text.strip())
        if call is None:
            out.append(text)
            continue
        if call[1] not in snippets:
            raise ValueError(f"{path.name}:{line}: no snippet {call[1]}")
        arguments = [a.strip() for a in (call[2] or "").split(",")]
        for part in snippets[call[1]]:
            for number, argument in enumerate(arguments, 1):
                part = part.replace(f"${number}", argument)
            out.append(part)
    return "\n".join(out)


def all_cases(paths: list[Path] | None = None) -> list[Case]:
    """Every case, checked.  A draft may lack the kind; test_corpus.py takes no drafts."""
    found: list[Case] = []
    for path in paths or sorted(DIRECTORY.glob("*.case")):
        names: set[str] = set()
        for case in read_cases(path):
            where = f"{path.name}:{case.line}"
            if case.name in names:
                raise ValueError(f"{where}: a second case {case.name}")
            names.add(case.name)
            if case.verdict not in ("accept", "refuse", "?"):
                raise ValueError(f"{where}: verdict {case.verdict!r}")
            if case.verdict == "refuse" and case.kind not in (*KINDS, "", "?"):
                raise ValueError(f"{where}: kind {case.kind!r} is not in the list")
            if case.ours and not re.match(r"(accept|refuse) because .", case.ours):
                raise ValueError(f"{where}: ours: needs a verdict and `because`")
            found.append(case)
    return found
