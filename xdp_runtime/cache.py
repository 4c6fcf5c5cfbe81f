"""What was worked out once is kept by content: bitcode of templates, machine code of programs,
verdicts of the verifier.  Templates that most runs need are compiled when xdpu is installed, and
lie in a directory of the package.

The key is a hash over everything the result depends on, the project's own sources included, so a
stale entry cannot be found.  Of a template that is written elsewhere (bench, tests, a port of
somebody else's) that is its file.  Entries are written to a temporary name and renamed, so
concurrent processes never see half of one.  A cache that cannot be written is reported once and
done without.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("xdp_runtime", "dataplane", "afxdp", "dpdk")
PREBUILT = _ROOT / "xdp_runtime" / "compiler" / "prebuilt"  # templates (control/prebuild.py)


def directory() -> Path:
    """XDPU_CACHE, or xdpu under XDG_CACHE_HOME or ~/.cache."""
    if override := os.environ.get("XDPU_CACHE"):
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "xdpu"


@lru_cache(maxsize=1)
def sources_fingerprint() -> str:
    """Hash of every source that a result may depend on, and of the compilers' versions."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode())
            digest.update(path.read_bytes())
    for name in ("llvmlite", "numba"):
        digest.update(version(name).encode())
    digest.update(sys.version.encode())
    return digest.hexdigest()


def source_fingerprint(function: Callable[..., Any]) -> str:
    """Hash of the file that a function is written in; empty where `sources_fingerprint` covers it.
    Constants that the file imports from others of its kind are not seen."""
    while isinstance(function, partial):
        function = function.func
    try:
        return _file_fingerprint(function.__code__.co_filename)
    except OSError:  # typed in, or `python -c`
        return hashlib.sha256(marshal.dumps(function.__code__)).hexdigest()


@lru_cache
def _file_fingerprint(name: str) -> str:
    path = Path(name)
    if any(path.is_relative_to(_ROOT / package) for package in _PACKAGES):
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def key(*parts: str | bytes | int) -> str:
    digest = hashlib.sha256(sources_fingerprint().encode())
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def get(name: str) -> bytes | None:
    """The entry, or None.  Entries carry a checksum: one damaged on disk counts as absent.

    Entries are machine code that will run, so one that somebody else could have written counts as
    absent, too: it must be a plain file of this user or root, writable by nobody else.  What the
    cache lacks may have come with the installation."""
    found = _read(directory() / name)
    return found if found is not None else _read(PREBUILT / name)


def _read(path: Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            if not _is_ours(os.fstat(handle)):
                return None
            raw = file.read()
    except OSError:
        return None
    body, checksum = raw[:-32], raw[-32:]
    return body if hashlib.sha256(body).digest() == checksum else None


def _is_ours(info: os.stat_result) -> bool:
    return (stat.S_ISREG(info.st_mode) and info.st_uid in (0, os.geteuid())
            and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def put(name: str, body: bytes) -> None:
    where = directory()
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=where, delete=False) as out:
            out.write(body + hashlib.sha256(body).digest())
        os.replace(out.name, where / name)
    except OSError as error:
        _complain(str(where), error)


@lru_cache(maxsize=1)
def _complain(where: str, error: OSError) -> None:
    print(f"xdpu: compile cache {where}: {error.strerror} (set XDPU_CACHE to a writable "
          "directory; compiling each time until then)", file=sys.stderr)
