"""Extern variables of section `.kconfig`: what the running kernel was built with, and its version.

They are one read-only map, laid out as libbpf does it; the values come at load time, from
/proc/config.gz or /boot/config-<release>.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from xdp_runtime import btf as bt
from xdp_runtime.btf import Btf
from xdp_runtime.errors import LoadError
from xdp_runtime.object import Extern, GlobalKind, MapSpec, Object

SECTION = ".kconfig"
MAX_BYTES = 1 << 20  # of all variables together
_TRISTATE = {"n": 0, "y": 1, "m": 2}  # enum libbpf_tristate


def read_externs(btf: Btf | None, weak: Mapping[str, bool]) -> tuple[Extern, ...]:
    """The variables, in the order of their place in the map.  `weak` has those the file names.

    Raises LoadError for a type that no configuration value has.
    """
    if btf is None:
        return ()
    section = btf.type(btf.find(SECTION, bt.DataSec))
    if not isinstance(section, bt.DataSec):
        return ()
    found = []
    for one in section.vars:
        var = btf.type(one.var)
        if isinstance(var, bt.Var) and var.name in weak:
            kind, size, align = _kind(btf, var)
            found.append(Extern(var.name, kind, 0, size, weak[var.name], align))
    found.sort(key=lambda e: (-e.align, e.size, e.name))
    placed, at = [], 0
    for extern in found:
        at = -(-at // extern.align) * extern.align
        placed.append(replace(extern, offset=at))
        at += extern.size
        if at > MAX_BYTES:
            raise LoadError(f"extern {extern.name}", f"makes {SECTION} {at} bytes, which is "
                            f"absurdly large ({MAX_BYTES} at most)", "declare a shorter array")
    return tuple(placed)


def _kind(btf: Btf, var: bt.Var) -> tuple[str, int, int]:
    """(bool, char, int, signed, tristate or text; size; alignment)"""
    type_id = btf.resolve(var.type)
    match btf.type(type_id):
        case bt.Int(size=1, encoding=encoding) if encoding & bt.INT_BOOL:
            return "bool", 1, 1
        case bt.Int(name=name, size=1, encoding=encoding) if (
                encoding & bt.INT_SIGNED or name == "char"):
            return "char", 1, 1
        case bt.Int(size=size, encoding=encoding) if size in (1, 2, 4, 8):
            return "signed" if encoding & bt.INT_SIGNED else "int", size, size
        case bt.EnumType(name="libbpf_tristate", size=size):
            return "tristate", size, size
        case bt.Array(element, _, count) if count:
            one = btf.type(btf.resolve(element))
            if isinstance(one, bt.Int) and one.size == 1:
                return "text", count, 1
    raise LoadError(f"extern {var.name}", "has a type that no kernel configuration value has",
                    "bool, char, an integer, enum libbpf_tristate or an array of char")


def kconfig_map(externs: tuple[Extern, ...], flags: int) -> MapSpec:
    """The map they are in, still without contents."""
    size = externs[-1].offset + externs[-1].size
    return MapSpec(SECTION, 2, 4, size, 1, flags, global_kind=GlobalKind.KCONFIG)


def fill_kconfig(obj: Object, config: Mapping[str, str] | None = None) -> tuple[MapSpec, ...]:
    """The maps of an Object, `.kconfig` with its values.  Raises LoadError."""
    if not obj.externs or all(m.initial for m in obj.maps if m.global_kind is GlobalKind.KCONFIG):
        return obj.maps
    raw = bytearray(obj.externs[-1].offset + obj.externs[-1].size)
    for extern in obj.externs:
        if extern.name.startswith("CONFIG_"):
            text = (kernel_config() if config is None else config).get(extern.name)
        else:
            text = _virtual(extern.name)
        if text is None:
            if extern.weak:
                continue
            raise LoadError(f"{obj.name}: extern {extern.name}",
                            "this kernel's configuration does not have it",
                            "declare it __weak to get 0 instead")
        raw[extern.offset:extern.offset + extern.size] = encode(extern, text)
    return tuple(replace(m, initial=bytes(raw)) if m.global_kind is GlobalKind.KCONFIG else m
                 for m in obj.maps)


def encode(extern: Extern, text: str) -> bytes:
    """A configuration value as the variable's bytes.  Raises LoadError if it is of another kind."""
    kind, size = extern.kind, extern.size
    wrong = LoadError(f"extern {extern.name}", f"is declared as {kind}, but configured as {text}")
    if text in _TRISTATE and kind in ("bool", "tristate", "char"):
        if kind == "bool" and text == "m":
            raise wrong
        number = ord(text) if kind == "char" else _TRISTATE[text]
        return number.to_bytes(size, "little")
    if kind == "bool" and text in ("0", "1"):  # what is not of the configuration (_virtual)
        return int(text).to_bytes(size, "little")
    if text.startswith('"') and kind == "text":
        return text.strip('"').encode()[:size - 1].ljust(size, b"\0")
    if kind in ("int", "signed", "char") and re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", text):
        number = int(text, 16 if "x" in text.lower() else 10)
        low, high = (0, 1 << 8 * size) if kind == "int" else (-(1 << 8 * size - 1), 1 << 8 * size)
        if not low <= number < high:
            raise LoadError(f"extern {extern.name}", f"{text} does not fit in {size} bytes")
        return (number & (1 << 8 * size) - 1).to_bytes(size, "little")
    raise wrong


def _virtual(name: str) -> str | None:
    """What libbpf says instead of the configuration; LINUX_HAS_* is about attaching by the kernel,
    which nothing here does.  Raises LoadError for a name that can have no value."""
    if name == "LINUX_KERNEL_VERSION":
        return _version()
    if name.startswith("LINUX_HAS_"):
        return "0"
    if name.startswith("LINUX_"):
        return None
    raise LoadError(f"extern {name}", "is of section .kconfig, which has only CONFIG_* and LINUX_*",
                    "remove __kconfig, or spell it as the kernel's configuration does")


def _version() -> str:
    """KERNEL_VERSION(a, b, c) of the running kernel."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    if found is None:
        raise LoadError("LINUX_KERNEL_VERSION", f"unknown release {os.uname().release}")
    a, b, c = (int(part or 0) for part in found.groups())
    return str(a << 16 | b << 8 | min(c, 255))


@lru_cache(maxsize=1)
def kernel_config() -> Mapping[str, str]:
    """CONFIG_* of the running kernel.  Raises LoadError."""
    release = os.uname().release
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{release}")):
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, flags=re.M))
    raise LoadError("kernel configuration", f"neither /proc/config.gz nor /boot/config-{release} "
                    "can be read", "modprobe configs")
