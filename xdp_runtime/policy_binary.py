"""A host's specification against its binary: do the symbols exist, with those types?

Types come from DWARF, or from BTF where there is no DWARF.  They are compared as C writes them,
without qualifiers; a typedef may be called by its own name or by what it stands for.

A host may also be derived: its source says what it grants with XDPU_HOST of
examples/policy/xdpu_host.h, one line each, and the types are the binary's.

    entry processBegin web_process_request       call now web_now return > 0; unit in 1, 1000
    read readPid web_pid                         write setLimit web_limit
    read readRequest struct web_request_t method uri
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xdp_runtime import btf as bt
from xdp_runtime.errors import ConfigError, LoadError
from xdp_runtime.policy import READ, WRITE, parse_constraint
from xdp_runtime.policy_host import RETURN, Entry, Function, Host, State

SECTION = ".xdpu.host"
_QUALIFIERS = ("const", "volatile", "restrict", "_Atomic")
_INTEGER = {"signed", "unsigned", "short", "int", "long", "char"}
_DEPTH = 32  # a longer chain of typedefs and pointers is a cycle


@dataclass(frozen=True, slots=True)
class CType:
    """`names`: the ways to write it, the one nearest to the source first."""

    names: tuple[str, ...]
    pointer: bool = False
    number: bool = False

    def __str__(self) -> str:
        return self.names[0]

    def is_called(self, text: str) -> bool:
        return canonical(text) in map(canonical, self.names)


VOID = CType(("void",))


@dataclass(frozen=True, slots=True)
class Signature:
    arguments: tuple[tuple[str, CType], ...]
    returns: CType


@dataclass(frozen=True, slots=True)
class Binary:
    """What debug information says, and which symbols are there for a loader."""

    path: str
    functions: Mapping[str, Signature]
    variables: Mapping[str, CType]
    structs: Mapping[str, Mapping[str, CType]]  # by every name, with their members
    symbols: Mapping[str, str]  # "function" or "variable"
    typedefs: Mapping[str, CType]
    annotations: tuple[str, ...] = ()

    def same(self, known: CType, text: str) -> bool:
        """Does `text` name that type, by a typedef of this binary perhaps?"""
        if known.is_called(text):
            return True
        base, star, stars = canonical(text).partition(" *")
        meant = self.typedefs.get(base)
        return meant is not None and any(
            known.is_called(f"{name}{star}{stars}") for name in meant.names)


@dataclass(frozen=True, slots=True)
class Wrong:
    """One declaration that the binary does not bear out."""

    name: str
    text: str


def canonical(text: str) -> str:
    """"const long unsigned int *" -> "unsigned long *" """
    words = [w for w in text.replace("*", " * ").split() if w not in _QUALIFIERS]
    base = [w for w in words if w != "*"]
    if base and set(base) <= _INTEGER:
        base = _integer(base)
    return " ".join([*base, *("*" for w in words if w == "*")])


def _integer(words: list[str]) -> list[str]:
    sign = ["unsigned"] if "unsigned" in words else []
    if "char" in words:
        return [*sign, *(["signed"] if "signed" in words else []), "char"]
    if "short" in words:
        return [*sign, "short"]
    return [*sign, *(["long"] * words.count("long") or ["int"])]


# ---- comparing -----------------------------------------------------------------------------------
def check_host(host: Host, path: Path) -> list[Wrong]:
    """Raises LoadError for a binary that cannot be read."""
    binary = read_binary(path)
    out: list[Wrong] = []
    for state in host.state.values():
        out += (Wrong(state.name, text) for text in _check_state(binary, state))
    called: list[Function | Entry] = [*host.functions.values(), *host.entries.values()]
    for one in called:
        out += (Wrong(one.name, text) for text in _check_function(binary, one))
    return out


def _check_state(binary: Binary, state: State) -> Iterator[str]:
    if state.variable:
        known = binary.variables.get(state.variable)
        if binary.symbols.get(state.variable) != "variable":
            yield f"{binary.path} has no variable {state.variable}"
        elif known is None:
            yield f"variable {state.variable} has no type in the debug information"
        elif not binary.same(known, state.type):
            yield f"variable {state.variable} is {known}, not {state.type}"
        return
    members = binary.structs.get(canonical(state.struct))
    if members is None:
        yield f"{binary.path} has no type {state.struct} with members"
        return
    for member in state.members:
        if member not in members:
            yield f"{state.struct} has no member {member}; it has {', '.join(members)}"


def _check_function(binary: Binary, one: Function | Entry) -> Iterator[str]:
    if binary.symbols.get(one.symbol) != "function":
        yield f"{binary.path} has no function {one.symbol}"
        return
    known = binary.functions.get(one.symbol)
    if known is None:
        yield f"function {one.symbol} has no type in the debug information"
        return
    if len(known.arguments) != len(one.arguments):
        yield (f"{one.symbol} takes {len(known.arguments)} arguments, "
               f"{len(one.arguments)} are declared")
    for (theirs, have), (ours, want) in zip(known.arguments, one.arguments, strict=False):
        if theirs and theirs != ours:
            yield f"argument {ours} of {one.symbol} is called {theirs}"
        if not binary.same(have, want):
            yield f"argument {ours} of {one.symbol} is {have}, not {want}"
    if not binary.same(known.returns, one.returns):
        yield f"{one.symbol} returns {known.returns}, not {one.returns}"
    if isinstance(one, Function):
        types = dict(known.arguments) | {RETURN: known.returns}
        for constraint in one.require:
            found = types.get(constraint.name)
            if found is None or found.number:
                continue
            if not found.pointer:
                yield f"{constraint}: {found} is not a number"
            elif constraint.op not in ("==", "!=") or constraint.numbers != (0,):
                yield f"{constraint}: of a pointer only `!= 0` or `== 0` can be asked"


# ---- deriving ------------------------------------------------------------------------------------
def derive_host(path: Path) -> Host:
    """The host that the binary's own annotations describe.  Raises LoadError, ConfigError."""
    binary = read_binary(path)
    if not binary.annotations:
        raise LoadError(str(path), f"has no section {SECTION}, so nothing says what it grants",
                        "annotate it with XDPU_HOST, or write a specification")
    state: dict[str, State] = {}
    functions: dict[str, Function] = {}
    entries: dict[str, Entry] = {}
    for text in binary.annotations:
        words = text.split()
        if len(words) < 3 or words[0] not in ("entry", "call", READ, WRITE):
            raise ConfigError(f"{path}: XDPU_HOST({text!r})", "is not understood",
                              "entry, call, read or write, a name, and a symbol")
        verb, name, symbol = words[:3]
        if name in entries or name in functions or (name in state and verb not in (READ, WRITE)):
            raise ConfigError(f"{path}: XDPU_HOST({text!r})", f"{name} is declared twice")
        if verb in (READ, WRITE):
            access = frozenset({verb}) | (state[name].access if name in state else frozenset())
            state[name] = _derive_state(binary, text, name, access, words[2:])
            continue
        known = binary.functions.get(symbol)
        if known is None:
            raise ConfigError(f"{path}: XDPU_HOST({text!r})", f"there is no function {symbol}")
        arguments = tuple((argument, str(kind)) for argument, kind in known.arguments)
        if verb == "entry":
            entries[name] = Entry(name, symbol, arguments, str(known.returns))
            continue
        try:
            require = tuple(parse_constraint(part)
                            for part in " ".join(words[3:]).split(";") if part.strip())
        except ValueError as error:
            raise ConfigError(f"{path}: XDPU_HOST({text!r})", str(error)) from None
        functions[name] = Function(name, symbol, arguments, str(known.returns), require)
    return Host(path.name, MappingProxyType(state), MappingProxyType(functions),
                MappingProxyType(entries))


def _derive_state(binary: Binary, text: str, name: str, access: frozenset[str],
                  words: list[str]) -> State:
    if words[0] == "struct" and len(words) > 1:
        struct = next((s for s in (words[1], f"struct {words[1]}") if s in binary.structs), "")
        if not struct:
            raise ConfigError(f"{binary.path}: XDPU_HOST({text!r})", f"no struct {words[1]}")
        return State(name, access, struct=struct, members=tuple(words[2:]))
    known = binary.variables.get(words[0])
    if known is None:
        raise ConfigError(f"{binary.path}: XDPU_HOST({text!r})", f"no variable {words[0]}")
    return State(name, access, variable=words[0], type=str(known))


# ---- reading -------------------------------------------------------------------------------------
def read_binary(path: Path) -> Binary:
    """Raises LoadError."""
    from elftools.common.exceptions import DWARFError, ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            return _read(elf, str(path))
    except OSError as error:
        raise LoadError(str(path), error.strerror or str(error)) from error
    except (ELFError, DWARFError, ValueError, KeyError, AssertionError) as error:
        raise LoadError(str(path), f"is not a readable ELF file: {error}") from error


def _read(elf: Any, path: str) -> Binary:
    symbols: dict[str, str] = {}
    for table in (".symtab", ".dynsym"):
        section = elf.get_section_by_name(table)
        for symbol in () if section is None else section.iter_symbols():
            kind = {"STT_FUNC": "function", "STT_OBJECT": "variable"}.get(symbol["st_info"]["type"])
            if kind and symbol["st_shndx"] != "SHN_UNDEF":
                symbols.setdefault(symbol.name, kind)
    marks = elf.get_section_by_name(SECTION)
    annotations = () if marks is None else tuple(
        part.decode("utf-8", "backslashreplace") for part in marks.data().split(b"\0") if part)
    types: _Dwarf | _BtfTypes
    if elf.has_dwarf_info(strict=True):
        types = _Dwarf(elf.get_dwarf_info())
    elif elf.get_section_by_name(".BTF") is not None:
        types = _BtfTypes(bt.Btf.parse(elf.get_section_by_name(".BTF").data()))
    else:
        raise LoadError(path, "has neither DWARF nor BTF, so its types cannot be checked",
                        "compile it with -g, and do not strip it")
    return Binary(path, types.functions, types.variables, types.structs, symbols, types.typedefs,
                  annotations)


@dataclass
class _Types:
    functions: dict[str, Signature] = field(default_factory=dict)
    variables: dict[str, CType] = field(default_factory=dict)
    structs: dict[str, dict[str, CType]] = field(default_factory=dict)
    typedefs: dict[str, CType] = field(default_factory=dict)


def _spell(stars: int, names: list[str], number: bool) -> CType:
    tail = " " + "*" * stars if stars else ""
    return CType(tuple(f"{name}{tail}" for name in names), stars > 0, number and not stars)


class _Dwarf(_Types):
    """Only what stands at the top of compilation units: bodies of functions are skipped."""

    def __init__(self, dwarf: Any) -> None:
        super().__init__()
        for unit in dwarf.iter_CUs():
            for die in unit.get_top_DIE().iter_children():
                self._see(die)

    def _see(self, die: Any) -> None:
        tag = die.tag
        if tag not in ("DW_TAG_subprogram", "DW_TAG_variable", "DW_TAG_structure_type",
                       "DW_TAG_union_type", "DW_TAG_typedef"):
            return
        origin = die
        for attribute in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if attribute in origin.attributes:
                origin = origin.get_DIE_from_attribute(attribute)
        name = _die_name(origin)
        if not name:
            return
        if tag == "DW_TAG_subprogram":
            arguments = tuple(
                (_die_name(child), self._type(child)) for child in origin.iter_children()
                if child.tag == "DW_TAG_formal_parameter")
            if name not in self.functions or "DW_AT_low_pc" in die.attributes:
                self.functions[name] = Signature(arguments, self._type(origin))
        elif tag == "DW_TAG_variable":
            self.variables.setdefault(name, self._type(origin))
        elif tag == "DW_TAG_typedef":
            self.typedefs.setdefault(name, self._type(die))
            target = self._target(die)
            if target is not None and target.tag in ("DW_TAG_structure_type", "DW_TAG_union_type"):
                self._struct(name, target)
        else:
            word = "struct" if tag == "DW_TAG_structure_type" else "union"
            self._struct(f"{word} {name}", die)

    def _struct(self, name: str, die: Any) -> None:
        if "DW_AT_declaration" not in die.attributes and name not in self.structs:
            self.structs[name] = {_die_name(child): self._type(child)
                                  for child in die.iter_children() if child.tag == "DW_TAG_member"}

    @staticmethod
    def _target(die: Any) -> Any:
        return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None

    def _type(self, die: Any) -> CType:
        """Of a variable, member, argument or array item, or of what a function returns."""
        stars, names = 0, list[str]()
        at = self._target(die)
        for _ in range(_DEPTH):
            if at is None:
                return _spell(stars, [*names, "void"], False)
            match at.tag:
                case "DW_TAG_pointer_type":
                    if names:  # a typedef of a pointer
                        return CType((*(f"{n} {'*' * stars}".strip() for n in names),), True)
                    stars += 1
                case "DW_TAG_typedef":
                    names.append(_die_name(at))
                case "DW_TAG_const_type" | "DW_TAG_volatile_type" | "DW_TAG_restrict_type" | (
                        "DW_TAG_atomic_type"):
                    pass
                case "DW_TAG_base_type":
                    return _spell(stars, [*names, _die_name(at)], True)
                case "DW_TAG_enumeration_type":
                    return _spell(stars, [*names, f"enum {_die_name(at)}"], True)
                case "DW_TAG_structure_type":
                    return _spell(stars, [*names, f"struct {_die_name(at)}"], False)
                case "DW_TAG_union_type":
                    return _spell(stars, [*names, f"union {_die_name(at)}"], False)
                case "DW_TAG_array_type":
                    inner = self._type(at)
                    return _spell(stars, [*names, f"{inner} []"], False)
                case _:
                    return _spell(stars, [*names, "function"], False)
            at = self._target(at)
        return _spell(stars, [*names, "?"], False)


def _die_name(die: Any) -> str:
    found = die.attributes.get("DW_AT_name")
    return "" if found is None else found.value.decode("utf-8", "backslashreplace")


class _BtfTypes(_Types):
    def __init__(self, btf: bt.Btf) -> None:
        super().__init__()
        self.btf = btf
        for one in btf.types:
            if isinstance(one, bt.Func):
                proto = btf.types[one.type]
                if isinstance(proto, bt.FuncProto):
                    self.functions[one.name] = Signature(
                        tuple((name, self._type(kind)) for name, kind in proto.params),
                        self._type(proto.return_type))
            elif isinstance(one, bt.Var):
                self.variables[one.name] = self._type(one.type)
            elif isinstance(one, bt.Struct | bt.Union) and one.name:
                word = "struct" if isinstance(one, bt.Struct) else "union"
                self._struct(f"{word} {one.name}", one)
            elif isinstance(one, bt.Typedef):
                self.typedefs[one.name] = self._type(one.type)
                target = btf.types[one.type]
                if isinstance(target, bt.Struct | bt.Union):
                    self._struct(one.name, target)

    def _struct(self, name: str, one: bt.Struct | bt.Union) -> None:
        self.structs[name] = {member.name: self._type(member.type) for member in one.members}

    def _type(self, number: int) -> CType:
        stars, names = 0, list[str]()
        for _ in range(_DEPTH):
            one = self.btf.types[number]
            match one:
                case bt.Void():
                    return _spell(stars, [*names, "void"], False)
                case bt.Ptr(type=number):
                    if names:
                        return CType((*(f"{n} {'*' * stars}".strip() for n in names),), True)
                    stars += 1
                case bt.Typedef(name=name, type=number):
                    names.append(name)
                case bt.Const(type=number) | bt.Volatile(type=number) | bt.Restrict(
                        type=number) | bt.TypeTag(type=number):
                    pass
                case bt.Int(name=name) | bt.Float(name=name):
                    return _spell(stars, [*names, name], True)
                case bt.EnumType(name=name):
                    return _spell(stars, [*names, f"enum {name}"], True)
                case bt.Struct(name=name):
                    return _spell(stars, [*names, f"struct {name}"], False)
                case bt.Union(name=name):
                    return _spell(stars, [*names, f"union {name}"], False)
                case bt.Fwd(name=name, is_union=is_union):
                    word = "union" if is_union else "struct"
                    return _spell(stars, [*names, f"{word} {name}"], False)
                case bt.Array(type=inner):
                    return _spell(stars, [*names, f"{self._type(inner)} []"], False)
                case _:
                    return _spell(stars, [*names, "function"], False)
        return _spell(stars, [*names, "?"], False)
