"""BTF from a few lines that look like C: functions, and structs of map values.

    struct cell { struct bpf_spin_lock lock; u32 count; }
    static long visit(u32 index, void *context)
    int sum(struct pair *p __nonnull, u32 n)

A word that starts with `__` tags a parameter as `arg:...`.
"""

from __future__ import annotations

import re
import struct

from xdp_runtime.btf import MAGIC

_INTS = {"char": (1, 1), "u8": (1, 0), "u16": (2, 0), "u32": (4, 0), "u64": (8, 0), "s8": (1, 1),
         "s16": (2, 1), "s32": (4, 1), "s64": (8, 1), "int": (4, 1), "long": (8, 1), "bool": (1, 4)}
_KNOWN = {
    "bpf_spin_lock": "struct bpf_spin_lock { u32 val; }",
    "bpf_timer": "struct bpf_timer { u64 opaque[2]; }",
    "bpf_dynptr": "struct bpf_dynptr { u64 opaque[2]; }",
    "bpf_iter_num": "struct bpf_iter_num { u64 opaque; }",
    "xdp_md": "struct xdp_md { u32 data; u32 data_end; u32 data_meta; u32 ingress_ifindex; "
              "u32 rx_queue_index; u32 egress_ifindex; }",
}
_INT, _PTR, _ARRAY, _STRUCT, _CONST, _FUNC, _PROTO, _DECL_TAG = 1, 2, 3, 4, 10, 12, 13, 17


class BtfBuilder:
    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._strings = bytearray(b"\0")
        self._made: dict[object, int] = {}
        self.structs: dict[str, tuple[int, int, int]] = {}  # id, size, alignment
        self.functions: dict[str, tuple[int, bool]] = {}  # id, whether it is global
        self.externs: dict[str, int] = {}
        self.function("int main(struct xdp_md *ctx)")

    def encode(self, externs: bool = True) -> bytes:
        """The .BTF section.  The externs come last and the kernel takes none of them."""
        count = len(self._types) if externs else len(self._types) - 2 * len(self.externs)
        types = b"".join(self._types[:count])
        return struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types),
                           len(self._strings)) + types + bytes(self._strings)

    def struct(self, text: str) -> int:
        match = re.fullmatch(r"struct (\w+) \{(.*)\}", text.strip(), re.DOTALL)
        if match is None:
            raise ValueError(f"cannot read {text!r}")
        fields, at, align = [], 0, 1
        for one in filter(None, (part.strip() for part in match[2].split(";"))):
            type_id, size, natural, name = self._declare(one)
            at = (at + natural - 1) & -natural
            fields.append((name, type_id, at * 8))
            at, align = at + size, max(align, natural)
        size = (at + align - 1) & -align
        members = b"".join(struct.pack("<III", self._string(n), t, o) for n, t, o in fields)
        type_id = self._add(match[1], _STRUCT, len(fields), size, members)
        self.structs[match[1]] = type_id, size, align
        return type_id

    def function(self, text: str) -> int:
        match = re.fullmatch(r"(static )?(.+?)(\w+)\((.*)\)", text.strip())
        if match is None:
            raise ValueError(f"cannot read {text!r}")
        params, tags = [], []
        for number, one in enumerate(filter(None, (p.strip() for p in match[4].split(",")))):
            if one == "void":
                continue
            words = one.split()
            tags += [(number, word[2:]) for word in words if word.startswith("__")]
            type_id, _, _, name = self._declare(" ".join(w for w in words if w[:2] != "__"))
            params.append((name, type_id))
        returned = self._type(match[2])[0]
        proto = self._add("", _PROTO, len(params), returned,
                          b"".join(struct.pack("<II", self._string(n), t) for n, t in params))
        is_global = not match[1]
        type_id = self._add(match[3], _FUNC, int(is_global), proto)
        self.functions[match[3]] = type_id, is_global
        for number, tag in tags:
            self._add(f"arg:{tag}", _DECL_TAG, 0, type_id, struct.pack("<i", number))
        return type_id

    def extern(self, name: str) -> int:
        """A kernel function: only its name counts."""
        proto = self._add("", _PROTO, 0, 0)
        self.externs[name] = self._add(name, _FUNC, 2, proto)
        return self.externs[name]

    def base(self, name: str) -> int:
        return self._type(name)[0]

    def _declare(self, text: str) -> tuple[int, int, int, str]:
        match = re.fullmatch(r"(.+?)(\w+)(?:\[(\d+)\])?", text)
        if match is None:
            raise ValueError(f"cannot read {text!r}")
        type_id, size, align = self._type(match[1])
        if match[3]:
            count = int(match[3])
            type_id = self._add("", _ARRAY, 0, 0,
                                struct.pack("<III", type_id, self.base("u32"), count))
            size *= count
        return type_id, size, align, match[2]

    def _type(self, text: str) -> tuple[int, int, int]:
        """(id, size, alignment)"""
        words = text.replace("*", " * ").split()
        at = 0
        if const := words[0] == "const":
            words = words[1:]
        if words[0] == "void":
            type_id, size, at = 0, 0, 1
        elif words[0] == "struct":
            if words[1] not in self.structs:
                self.struct(_KNOWN[words[1]])
            (type_id, size, align), at = self.structs[words[1]], 2
        else:
            size, encoding = _INTS[words[0]]
            at = 1
            type_id = self._once(words[0], _INT, size, struct.pack("<I", encoding << 24 | size * 8))
        align = self.structs[words[1]][2] if words[0] == "struct" else max(size, 1)
        if const:
            type_id = self._once("", _CONST, type_id)
        for word in words[at:]:
            if word != "*":
                raise ValueError(f"cannot read type {text!r}")
            type_id, size, align = self._once("", _PTR, type_id), 8, 8
        return type_id, size, align

    def _once(self, name: str, kind: int, size: int, rest: bytes = b"") -> int:
        key = name, kind, size
        if key not in self._made:
            self._made[key] = self._add(name, kind, 0, size, rest)
        return self._made[key]

    def _add(self, name: str, kind: int, vlen: int, size: int, rest: bytes = b"") -> int:
        self._types.append(struct.pack("<III", self._string(name), kind << 24 | vlen, size) + rest)
        return len(self._types)

    def _string(self, text: str) -> int:
        if not text:
            return 0
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1
