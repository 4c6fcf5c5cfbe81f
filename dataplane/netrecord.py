"""Addresses, routes and neighbours as the kernel states them, with the fields one compares by.

Records keep the kernel's own bytes (see netlink.py).  Each has `key`, all of it that was configured
and nothing that changes by itself; `moved`, the same for another interface; and `written` or
`aged`, the form in which the kernel takes it back.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dataplane import netlink as nl

IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS = 1, 2, 3, 4, 6, 8
IFA_RT_PRIORITY = 9
IFA_F_RUNTIME = 0x01 | 0x08 | 0x20 | 0x40 | 0x80     # secondary, dadfailed, deprecated, ...
FOREVER = 0xFFFFFFFF
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 4, 5, 6, 7
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_ENCAP_TYPE, RTA_ENCAP = 9, 12, 15, 18, 21, 22
RTA_PREF, RTA_EXPIRES, RTA_PAD, RTA_NH_ID = 20, 23, 24, 30
RTM_F_CLONED = 0x200
RTNH_F_CONFIGURED = 0x02 | 0x04                      # pervasive, onlink; the rest is state
RT_TABLE_LOCAL, RTPROT_KERNEL = 255, 2
USER_HZ = 100
NDA_DST, NDA_LLADDR, NUD_PERMANENT, NTF_PROXY = 1, 2, 0x80, 0x08

AddressKey = tuple[int, str, str | None, int]       # family, local, peer, prefixlen
T = TypeVar("T", bound="Record")


@dataclass(frozen=True)
class Record:
    """A kernel message: its fixed header and its attributes, in hex so that it goes into JSON."""

    head: str
    attrs: tuple[tuple[int, str], ...]

    @classmethod
    def from_bytes(cls: type[T], body: bytes, head_bytes: int) -> T:
        return cls(body[:head_bytes].hex(),
                   tuple((k, v.hex()) for k, v in nl.parse_attrs(body[head_bytes:])))

    @classmethod
    def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
        fields = {k: v for k, v in data.items() if k not in ("attrs", "text")}
        return cls(attrs=tuple((k, v) for k, v in data["attrs"]), **fields)

    def to_json(self) -> dict[str, Any]:
        return {"text": str(self), "head": self.head, "attrs": [list(a) for a in self.attrs]}

    def get(self, kind: int) -> bytes | None:
        return next((bytes.fromhex(v) for k, v in self.attrs if k == kind), None)

    def number(self, kind: int) -> int | None:
        value = self.get(kind)
        return None if value is None else int(struct.unpack_from("=I", value)[0])

    def with_attrs(self: T, changes: Mapping[int, bytes | None]) -> T:
        """The same with attributes replaced, added (bytes) or left out (None)."""
        kept = [(k, changes[k] if k in changes else bytes.fromhex(v)) for k, v in self.attrs]
        have = {k for k, _ in kept}
        kept += [(k, v) for k, v in changes.items() if k not in have]
        return replace(self, attrs=tuple((k, v.hex()) for k, v in kept if v is not None))

    def message(self) -> bytes:
        return bytes.fromhex(self.head) + nl.encode_attrs(
            (k, bytes.fromhex(v)) for k, v in self.attrs)

    def _head(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, bytes.fromhex(self.head))


def _address_text(value: bytes | None) -> str:
    if value is None:
        return ""
    return str(ipaddress.ip_address(value)) if len(value) in (4, 16) else value.hex()


@dataclass(frozen=True)
class Address(Record):
    LAYOUT = "=BBBBI"       # ifaddrmsg: family, prefixlen, flags, scope, index

    @property
    def family(self) -> int:
        return self._head(self.LAYOUT)[0]

    @property
    def prefixlen(self) -> int:
        return self._head(self.LAYOUT)[1]

    @property
    def scope(self) -> int:
        return self._head(self.LAYOUT)[3]

    @property
    def index(self) -> int:
        return self._head(self.LAYOUT)[4]

    @property
    def flags(self) -> int:
        wide = self.number(IFA_FLAGS)
        return self._head(self.LAYOUT)[2] if wide is None else wide

    @property
    def local(self) -> str:
        return _address_text(self.get(IFA_LOCAL) or self.get(IFA_ADDRESS))

    @property
    def peer(self) -> str | None:
        peer = _address_text(self.get(IFA_ADDRESS))
        return peer if peer != self.local else None

    @property
    def broadcast(self) -> str | None:
        return _address_text(self.get(IFA_BROADCAST)) or None

    @property
    def label(self) -> str | None:
        label = self.get(IFA_LABEL)
        return None if label is None else label.rstrip(b"\0").decode(errors="replace")

    @property
    def metric(self) -> int | None:
        return self.number(IFA_RT_PRIORITY)

    @property
    def lifetimes_s(self) -> tuple[int, int]:
        """(preferred, valid); FOREVER for one without end."""
        info = self.get(IFA_CACHEINFO)
        return (FOREVER, FOREVER) if info is None else struct.unpack_from("=II", info)

    @property
    def key(self) -> AddressKey:
        return self.family, self.local, self.peer, self.prefixlen

    def moved(self, index: int, old_name: str = "", new_name: str = "") -> Address:
        family, prefixlen, flags, scope, _ = self._head(self.LAYOUT)
        head = struct.pack(self.LAYOUT, family, prefixlen, flags, scope, index)
        changes: dict[int, bytes | None] = {}
        if self.label is not None and old_name != new_name:
            tail = self.label.removeprefix(old_name) if self.label.startswith(old_name) else ""
            changes[IFA_LABEL] = (new_name + tail)[:15].encode() + b"\0"
        return replace(self, head=head.hex()).with_attrs(changes)

    def renewed(self, fresh: Address) -> Address:
        """With the lifetimes of `fresh`."""
        return self.with_attrs({IFA_CACHEINFO: fresh.get(IFA_CACHEINFO)})

    def aged(self, elapsed_s: int) -> Address | None:
        """With what is left of its lifetimes; None when it has expired.  Ready to be written."""
        preferred, valid = self.lifetimes_s
        left = [v if v == FOREVER else max(v - elapsed_s, 0) for v in (preferred, valid)]
        if left[1] == 0:
            return None
        finite = (preferred, valid) != (FOREVER, FOREVER)
        family, prefixlen, _, scope, index = self._head(self.LAYOUT)
        flags = self.flags & ~IFA_F_RUNTIME
        head = struct.pack(self.LAYOUT, family, prefixlen, flags & 0xFF, scope, index)
        return replace(self, head=head.hex()).with_attrs({
            IFA_FLAGS: struct.pack("=I", flags),
            IFA_CACHEINFO: struct.pack("=IIII", *left, 0, 0) if finite else None})

    def __str__(self) -> str:
        peer = f" peer {self.peer}" if self.peer else ""
        return f"{self.local}{peer}/{self.prefixlen}"


@dataclass(frozen=True)
class Route(Record):
    """`ahead`: stands before routes of other interfaces to the same prefix with the same metric."""

    ahead: bool = False
    # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
    LAYOUT = "=BBBBBBBBI"

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"ahead": self.ahead}

    @property
    def family(self) -> int:
        return self._head(self.LAYOUT)[0]

    @property
    def table(self) -> int:
        wide = self.number(RTA_TABLE)
        return self._head(self.LAYOUT)[4] if wide is None else wide

    @property
    def proto(self) -> int:
        return self._head(self.LAYOUT)[5]

    @property
    def scope(self) -> int:
        return self._head(self.LAYOUT)[6]

    @property
    def cloned(self) -> bool:
        return bool(self._head(self.LAYOUT)[8] & RTM_F_CLONED)

    @property
    def automatic(self) -> bool:
        """Comes and goes with an address or the interface."""
        return self.table == RT_TABLE_LOCAL and self.proto == RTPROT_KERNEL

    @property
    def gateway(self) -> str | None:
        return _address_text(self.get(RTA_GATEWAY)) or None

    @property
    def metric(self) -> int:
        return self.number(RTA_PRIORITY) or 0

    @property
    def source(self) -> str | None:
        return _address_text(self.get(RTA_PREFSRC)) or None

    @property
    def prefixlen(self) -> int:
        return self._head(self.LAYOUT)[1]

    @property
    def legs(self) -> bool:
        return self.get(RTA_MULTIPATH) is not None

    @property
    def interfaces(self) -> tuple[int, ...]:
        """Indices it goes out by, one for each leg."""
        legs = self.get(RTA_MULTIPATH)
        if legs is None:
            return tuple(i for i in (self.number(RTA_OIF),) if i is not None)
        return tuple(leg[3] for leg, _ in _legs(legs))

    @property
    def slot(self) -> tuple[Any, ...]:
        """Routes of one slot compete by order alone."""
        family, dst_len, src_len, tos, *_ = self._head(self.LAYOUT)
        return family, self.table, dst_len, src_len, tos, self.get(RTA_DST), self.metric

    @property
    def key(self) -> tuple[Any, ...]:
        """Everything that was configured, nothing that counts or changes by itself."""
        plain = self.written()
        return plain.head, tuple(sorted(a for a in plain.attrs if a[0] != RTA_EXPIRES))

    def written(self) -> Route:
        """The form in which the kernel takes it back."""
        *start, flags = self._head(self.LAYOUT)
        head = struct.pack(self.LAYOUT, *start, flags & RTNH_F_CONFIGURED)
        changes: dict[int, bytes | None] = {RTA_CACHEINFO: None, RTA_PAD: None}
        info = self.get(RTA_CACHEINFO)
        if info is not None and self.get(RTA_EXPIRES) is None:
            expires = struct.unpack_from("=IIi", info)[2]
            if expires > 0:
                changes[RTA_EXPIRES] = struct.pack("=I", max(expires // USER_HZ, 1))
        if self.get(RTA_NH_ID) is not None:      # the nexthop object says the rest
            changes |= dict.fromkeys((RTA_OIF, RTA_GATEWAY, RTA_VIA, RTA_MULTIPATH, RTA_ENCAP,
                                      RTA_ENCAP_TYPE))
        elif (legs := self.get(RTA_MULTIPATH)) is not None:
            changes[RTA_MULTIPATH] = b"".join(
                _pack_leg(f & RTNH_F_CONFIGURED, h, i, rest) for (_, f, h, i), rest in _legs(legs))
        return replace(self, head=head.hex()).with_attrs(changes)

    def with_proto(self, proto: int) -> Route:
        head = list(self._head(self.LAYOUT))
        head[5] = proto
        return replace(self, head=struct.pack(self.LAYOUT, *head).hex())

    def moved(self, old: int, new: int) -> Route:
        """The same route by interface `new`; legs by other interfaces stay."""
        changes: dict[int, bytes | None] = {RTA_NH_ID: None}
        if self.number(RTA_OIF) == old:
            changes[RTA_OIF] = struct.pack("=I", new)
        if (legs := self.get(RTA_MULTIPATH)) is not None:
            changes[RTA_MULTIPATH] = b"".join(
                _pack_leg(f, h, new if i == old else i, rest) for (_, f, h, i), rest in _legs(legs))
        return self.with_attrs(changes)

    def aged(self, elapsed_s: int) -> Route | None:
        plain = self.written()
        expires = plain.number(RTA_EXPIRES)
        if expires is None:
            return plain
        left = expires - elapsed_s
        return plain.with_attrs({RTA_EXPIRES: struct.pack("=I", left)}) if left > 0 else None

    def __str__(self) -> str:
        target = self.get(RTA_DST)
        where = f"{_address_text(target)}/{self._head(self.LAYOUT)[1]}" if target else "default"
        via = f" via {self.gateway}" if self.gateway else ""
        return f"{where}{via} table {self.table} metric {self.metric}"


def _legs(data: bytes) -> list[tuple[tuple[int, int, int, int], bytes]]:
    """rtnexthop structs: (length, flags, hops, index) and the attributes of each."""
    legs = []
    offset = 0
    while offset + 8 <= len(data):
        leg = struct.unpack_from("=HBBI", data, offset)
        if leg[0] < 8:
            break
        legs.append((leg, data[offset + 8:offset + leg[0]]))
        offset += leg[0] + (-leg[0] % 4)
    return legs


def _pack_leg(flags: int, hops: int, index: int, rest: bytes) -> bytes:
    return struct.pack("=HBBI", 8 + len(rest), flags, hops, index) + rest + b"\0" * (-len(rest) % 4)


@dataclass(frozen=True)
class Neighbour(Record):
    """A permanent or a proxy entry."""

    LAYOUT = "=BxxxIHBB"    # ndmsg: family, index, state, flags, type

    @property
    def family(self) -> int:
        return self._head(self.LAYOUT)[0]

    @property
    def index(self) -> int:
        return self._head(self.LAYOUT)[1]

    @property
    def state(self) -> int:
        return self._head(self.LAYOUT)[2]

    @property
    def proxy(self) -> bool:
        return bool(self._head(self.LAYOUT)[3] & NTF_PROXY)

    @property
    def key(self) -> tuple[int, bool, bytes | None]:
        return self.family, self.proxy, self.get(NDA_DST)

    def moved(self, index: int) -> Neighbour:
        family, _, state, flags, kind = self._head(self.LAYOUT)
        return replace(self, head=struct.pack(self.LAYOUT, family, index, state, flags,
                                              kind).hex())

    def written(self) -> Neighbour:
        """Only what is configured: counters and times left out."""
        kept = {NDA_DST, NDA_LLADDR, 5, 6, 7, 12, 15}    # vlan, port, vni, protocol, extended flags
        return replace(self, attrs=tuple(a for a in self.attrs if a[0] in kept))

    def __str__(self) -> str:
        return f"{_address_text(self.get(NDA_DST))}{' proxy' if self.proxy else ''}"
