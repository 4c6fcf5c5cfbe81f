"""The cache gives back only what nobody else could have written, and what is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xdp_runtime import cache


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path))
    cache.put("entry", b"code")
    assert cache.get("entry") == b"code"
    return tmp_path


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666])
def test_writable_by_others_is_absent(where: Path, mode: int) -> None:
    (where / "entry").chmod(mode)
    assert cache.get("entry") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_somebody_elses_is_absent(where: Path) -> None:
    os.chown(where / "entry", 12345, 12345)
    assert cache.get("entry") is None
    cache.put("entry", b"again")  # and is replaced
    assert cache.get("entry") == b"again"


def test_links_and_pipes_are_absent(where: Path) -> None:
    (where / "link").symlink_to(where / "entry")
    os.mkfifo(where / "pipe", 0o600)
    assert cache.get("link") is None
    assert cache.get("pipe") is None  # and does not wait for a writer


def test_damaged_is_absent(where: Path) -> None:
    raw = bytearray((where / "entry").read_bytes())
    raw[0] ^= 1
    (where / "entry").write_bytes(raw)
    assert cache.get("entry") is None
