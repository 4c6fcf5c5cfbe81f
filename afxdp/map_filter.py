"""`map:NAME` in a filter: packets whose key is in a map of the program's own object.

    map:vips                      the key's BTF says what it is made of
    map:allowed:src               or it is said, member by member
    map:vips:dst,dport,proto      tcp and not map:blocked:src

What members can be: `src` and `dst`, addresses of 4 bytes (IPv4) or 16 (IPv6; a union with 4 bytes
in it takes both, the rest zero); `sport`, `dport`, `proto`, `vlan`, `ethertype`; `0`.  An address,
port, id or type lies in the key as in the packet, or with `.host` behind it as a number of this
machine.  What BTF calls by a name known for it (_NAMES) need not be said, but for a port of another
type than __be16, which may be either.  A packet that lacks one of them, such as the port of a
fragment, has no key and is left.

The kernel cannot read the program's map, which is memory of ours.  So the redirect program has a
set of the keys in the kernel, which `mirror.py` keeps as the map is: a key is in it while the map
has an entry, of an array while the value of that index is not zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from xdp_runtime import btf as bt
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType, Object

WORD = "map:"
_HASHES = (MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
_ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
KEY_BYTES_MAX, PREFIX_BYTES, ENTRIES_MAX = 128, 4, 1 << 26
ROOM = 2  # times the map's entries: shares of workers round them up
ENTRY_BYTES = 96  # of the kernel's memory beside a key, about
SIZES = {"src": (4, 16), "dst": (4, 16), "sport": (2, 4, 8), "dport": (2, 4, 8),
         "proto": (1, 2, 4, 8), "vlan": (2, 4, 8), "ethertype": (2, 4, 8)}
_NATURAL = {"proto": 1, "0": 1}  # bytes of what BTF does not give a size; all else has 2
_ORDERED = ("sport", "dport", "vlan", "ethertype")
_NAMES = {  # as objects call them
    "src": "src saddr src_ip srcip ip_src src_addr source source_ip sip",
    "dst": "dst daddr dst_ip dstip ip_dst dst_addr dest_ip destination dip vip",
    "sport": "sport src_port srcport source_port port_src",
    "dport": "dport dst_port dstport dest_port destination_port port_dst",
    "proto": "proto protocol ip_proto l4_proto l4proto nexthdr next_header",
    "vlan": "vlan vlan_id vid", "ethertype": "ethertype eth_type eth_proto h_proto"}
_FIELD_OF = {name: field for field, names in _NAMES.items() for name in names.split()}
_PADDING = re.compile(r"_*(pad|padding|reserved|unused|zero|rsvd)[\d_]*")


@dataclass(frozen=True, slots=True)
class Part:
    """A member of a key: which field, where; `host`: a number of this machine, else as in the
    packet; `either`: an IPv4 address may be in the first 4 of its 16 bytes."""

    field: str
    at: int
    size: int
    host: bool = False
    either: bool = False


@dataclass(frozen=True, slots=True)
class KeyShape:
    """How a packet's key for a map is made, and which set the kernel needs: of prefixes, or not."""

    map: str
    type: int
    key_size: int
    max_entries: int
    parts: tuple[Part, ...]

    @property
    def trie(self) -> bool:
        return self.type == MapType.LPM_TRIE

    @property
    def array(self) -> bool:
        """Are its entries those that are not zero?"""
        return self.type in _ARRAYS

    def check(self) -> None:
        """Raises ValueError for one that somebody else made up."""
        sound = self.type in (*_HASHES, *_ARRAYS, MapType.LPM_TRIE) and self.parts \
            and 0 < self.key_size <= KEY_BYTES_MAX and 0 < self.max_entries <= ENTRIES_MAX
        if not sound or not all(part.size in SIZES.get(part.field, ())
                                and 0 <= part.at <= self.key_size - part.size
                                for part in self.parts):
            raise ValueError(f"a key that cannot be made: {self!r:.200}")

    @property
    def memory_bytes(self) -> int:
        """What the kernel's set of its keys may come to."""
        return ROOM * self.max_entries * (self.key_size + ENTRY_BYTES)

    def __str__(self) -> str:
        fields = (part.field + (".host" if part.host else "") for part in self.parts)
        return f"{self.map}: {', '.join(fields)}"


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A member of a key's type, as BTF has it."""

    name: str
    at: int
    size: int
    network: bool = False
    either: bool = False
    bits: int = 0  # of a bit field, which has no size

    @property
    def field(self) -> str:
        if _PADDING.fullmatch(self.name.lower()):
            return "0"
        return _FIELD_OF.get(self.name.lower(), "")

    def __str__(self) -> str:
        size = f"{self.bits} bits" if self.bits else \
            f"{self.size} byte{'s' * (self.size != 1)}"
        return f"{self.name} of {size}" if self.name else size


# ---- from words ----------------------------------------------------------------------------------

def split(word: str) -> tuple[str, tuple[str, ...]]:
    """map:NAME[:FIELD,...] -> the name and the fields.  Raises ValueError with what is wrong."""
    name, _, said = word.removeprefix(WORD).partition(":")
    fields = tuple(said.split(",")) if said else ()
    if not name or word.endswith(":"):
        raise ValueError("is no map:NAME or map:NAME:FIELD,FIELD")
    for field in fields:
        base, dot, order = field.partition(".")
        if base not in SIZES and field != "0":
            raise ValueError(f"has a field {field or 'without a name'}: there are "
                             f"{', '.join(SIZES)} and 0")
        if dot and (order != "host" or base == "proto"):
            raise ValueError(f"has a field {field}: .host goes with ports, ids and addresses")
    return name, fields


def shape(word: str, obj: Object) -> KeyShape:
    """Of a word of the filter, for this object.  Raises ConfigError."""
    name, fields = split(word)
    what = f"--filter {word}"
    spec = next((one for one in obj.maps if one.name == name
                 and one.global_kind == GlobalKind.NONE), None)
    if spec is None:
        have = ", ".join(one.name for one in obj.maps if one.global_kind == GlobalKind.NONE)
        raise ConfigError(what, f"{obj.name} has no map {name!r}", f"it has: {have or 'none'}")
    if spec.type not in (*_HASHES, *_ARRAYS, MapType.LPM_TRIE):
        raise ConfigError(what, f"{name} is of another type than hash, LPM trie or array, so no "
                          "packet has a key of it")
    if spec.flags & MapFlag.WRONLY:
        raise ConfigError(what, f"user space may not read {name} (BPF_F_WRONLY)")
    if spec.key_size > KEY_BYTES_MAX:
        raise ConfigError(what, f"a key of {spec.key_size} bytes is longer than the "
                          f"{KEY_BYTES_MAX} that a filter makes of a packet")
    leaves = _leaves_of(spec, obj)
    if fields:
        parts = _said(fields, leaves, spec, what)
    else:
        parts = _inferred(leaves, spec, what)
    if spec.type in _ARRAYS:
        parts = tuple(replace(part, host=part.field in _ORDERED) for part in parts)
    if all(part.field == "0" for part in parts):
        raise ConfigError(what, "its key has nothing of a packet", _mend(spec))
    return KeyShape(name, spec.type, spec.key_size, spec.max_entries,
                    tuple(part for part in parts if part.field != "0"))


def _mend(spec: MapSpec) -> str:
    return f"say what it is, such as map:{spec.name}:dst or map:{spec.name}:src,dport,proto"


def _said(fields: Sequence[str], leaves: Sequence[_Leaf], spec: MapSpec, what: str
          ) -> tuple[Part, ...]:
    """Fields in the order of the key's members; members that are called padding may be left out."""
    if not leaves:
        leaves = _packed(fields, spec, what)
    if len(fields) != len(leaves):
        leaves = [leaf for leaf in leaves if leaf.field != "0"]
    if len(fields) != len(leaves):
        raise ConfigError(what, f"its key has {len(leaves)} members ({_listed(leaves)}), and "
                          f"{len(fields)} {'is' if len(fields) == 1 else 'are'} said")
    parts = []
    for said, leaf in zip(fields, leaves, strict=True):
        field, _, order = said.partition(".")
        _check_size(field, leaf, what)
        parts.append(Part(field, leaf.at, leaf.size, order == "host", leaf.either))
    return tuple(parts)


def _check_size(field: str, leaf: _Leaf, what: str) -> None:
    if field != "0" and leaf.size not in SIZES[field]:
        sizes = " or ".join(map(str, SIZES[field]))
        raise ConfigError(what, f"{field} has {sizes} bytes, and the key's {leaf}")


def _packed(fields: Sequence[str], spec: MapSpec, what: str) -> list[_Leaf]:
    """Members of a key without BTF: one is all of it, several lie one behind the other."""
    start = PREFIX_BYTES if spec.type == MapType.LPM_TRIE else 0
    room = spec.key_size - start
    if len(fields) == 1:
        return [_Leaf("", start, room)]
    for address in (4, 16):
        sizes = [address if field.partition(".")[0] in ("src", "dst") else
                 _NATURAL.get(field.partition(".")[0], 2) for field in fields]
        if room in (sum(sizes), -(-sum(sizes) // 4) * 4):
            return [_Leaf("", start + sum(sizes[:i]), size) for i, size in enumerate(sizes)]
    raise ConfigError(what, f"its key has {room} bytes, which these fields do not fill one behind "
                      "the other, and no BTF says where they are")


def _inferred(leaves: Sequence[_Leaf], spec: MapSpec, what: str) -> tuple[Part, ...]:
    parts = []
    for leaf in leaves:
        field = leaf.field
        if not field:
            break
        if field == "0":
            continue
        _check_size(field, leaf, what)
        if field in _ORDERED and not leaf.network and spec.type not in _ARRAYS:
            raise ConfigError(what, f"its member {leaf.name} may be as in the packet or a number "
                              "of this machine, which no __be16 says",
                              f"say it: map:{spec.name}:{_fields(leaves)}, with .host behind "
                              "what is a number of this machine")
        parts.append(Part(field, leaf.at, leaf.size, False, leaf.either))
    else:
        if leaves:
            return tuple(parts)
    made = _listed(leaves) if leaves else f"{spec.key_size} bytes without BTF"
    raise ConfigError(what, f"its key, {made}, does not say what of a packet it is", _mend(spec))


def _listed(leaves: Sequence[_Leaf]) -> str:
    return ", ".join(map(str, leaves))


def _fields(leaves: Sequence[_Leaf]) -> str:
    return ",".join(leaf.field for leaf in leaves if leaf.field != "0")


def _leaves_of(spec: MapSpec, obj: Object) -> list[_Leaf]:
    """Members of the key; of a trie's those behind the length of the prefix."""
    if obj.btf is None or not spec.key_type_id:
        return []
    leaves = list(_leaves(obj.btf, spec.key_type_id, 0, ""))
    if spec.type == MapType.LPM_TRIE:
        leaves = [leaf for leaf in leaves if leaf.at >= PREFIX_BYTES]
    return [leaf for leaf in leaves if leaf.size or leaf.bits]


def _leaves(btf: bt.Btf, type_id: int, at: int, name: str, depth: int = 0) -> Iterator[_Leaf]:
    one, size = btf.type(btf.resolve(type_id)), btf.size_of(type_id)
    match one:
        case bt.Struct() if depth < bt.MAX_DEPTH and not (name and _FIELD_OF.get(name.lower())):
            for member in one.members:
                if member.bit_size or member.bit_offset % 8:
                    yield _Leaf(member.name, at + member.bit_offset // 8, 0,
                                bits=member.bit_size)
                else:
                    yield from _leaves(btf, member.type, at + member.bit_offset // 8, member.name,
                                       depth + 1)
        case bt.Union():
            names = [name, *(member.name for member in one.members)]
            known = next((one for one in names if _FIELD_OF.get(one.lower())), names[0] or names[1])
            short = any(btf.size_of(member.type) == 4 for member in one.members)
            yield _Leaf(known, at, size, False, size == 16 and short)
        case _:
            yield _Leaf(name, at, size, _is_network(btf, type_id))


def _is_network(btf: bt.Btf, type_id: int) -> bool:
    """Is it declared as __be16 or the like?"""
    for _ in range(bt.MAX_DEPTH):
        one = btf.type(type_id)
        if not isinstance(one, bt.Typedef | bt.Const | bt.Volatile | bt.TypeTag):
            return False
        if one.name.startswith("__be"):
            return True
        type_id = one.type
    return False


# ---- to instructions -----------------------------------------------------------------------------

def to_assembly(one: KeyShape, number: int, places: Mapping[str, int], none: int, below: int,
                label: str) -> str:
    """Text for asm.py that leaves 0 in r0 where the packet's key is not in map `set<number>`.

    `places` are the fields' offsets from the frame pointer as filter.py's walk leaves them, `none`
    what a number is that is not there, `below` where the key goes."""
    base = below - -(-one.key_size // 8) * 8
    lines = ["r0 = 0", "r2 = 0"]
    lines += [_store(64, base + at, 2) for at in range(0, below - base, 8)]
    if one.trie:
        lines += [f"r2 = {8 * (one.key_size - PREFIX_BYTES)}", _store(32, base, 2)]
    for index, part in enumerate(one.parts):
        mine = f"{label}_{index}"
        if part.field in ("src", "dst"):
            lines += _address(part, base, places, mine, f"{label}_end")
        else:
            lines += [f"r2 = {_load(64, places[part.field])}", f"if r2 == {none} goto {label}_end"]
            if part.field in _ORDERED and not part.host:
                lines.append("r2 = be16 r2")
            lines.append(_store(8 * part.size, base + part.at, 2))
    lines += ["r2 = r10", f"r2 += {base}", f"r1 = map[set{number}] ll", "call bpf_map_lookup_elem",
              f"{label}_end:"]
    return "\n".join(lines) + "\n"


def _address(part: Part, base: int, places: Mapping[str, int], label: str, end: str) -> list[str]:
    place, to = places[part.field], base + part.at
    short = [f"r2 = {_load(32, place)}", *(["r2 = be32 r2"] if part.host else []),
             _store(32, to, 2)]
    long = [line for at in range(0, 16, 4)
            for line in (f"r2 = {_load(32, place + at)}", _store(32, to + at, 2))]
    family = [f"r2 = {_load(64, places['family'])}"]
    if part.size == 4:
        return [*family, f"if r2 != {0x0800} goto {end}", *short]
    if not part.either:
        return [*family, f"if r2 != {0x86DD} goto {end}", *long]
    return [*family, f"if r2 == {0x86DD} goto {label}_long", f"if r2 != {0x0800} goto {end}",
            *short, f"goto {label}_done", f"{label}_long:", *long, f"{label}_done:"]


def _at(offset: int) -> str:
    return f"(r10 - {-offset})"


def _load(bits: int, offset: int) -> str:
    return f"*(u{bits} *){_at(offset)}"


def _store(bits: int, offset: int, register: int) -> str:
    return f"*(u{bits} *){_at(offset)} = r{register}"
