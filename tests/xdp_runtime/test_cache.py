"""The cache gives back only what nobody else could have written, and what is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from xdp_runtime import cache
from xdp_runtime.compiler import link, templates
from xdp_runtime.compiler.link import Unit
from xdp_runtime.helpers import clock
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.template import Template


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


WRITTEN = """
def factory(m):
    def answer(x):
        return {answer}
    return answer
"""


def _planted(path: Path, answer: int) -> Template:
    path.write_text(WRITTEN.format(answer=answer))
    cache._file_fingerprint.cache_clear()  # as in another process
    scope: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), scope)
    return Template("planted", scope["factory"], "i64(i64)")


def test_a_template_written_elsewhere_is_known_by_its_file(tmp_path: Path) -> None:
    """Another text of the same name is not what the cache has, neither alone nor in a unit."""
    def keys(template: Template) -> tuple[str, str]:
        unit = Unit("unit", "", (Template("around", clock.JIFFIES.factory, "i64()", (template,)),))
        obj = Object("one", (ProgramSpec("one", "xdp", "xdp", ()),), (), "GPL")
        return (templates.entry_name(template),
                link.content_key(obj, obj.program(), 1, 3, (unit,), None))

    first = keys(_planted(tmp_path / "bench.py", 1))
    assert keys(_planted(tmp_path / "bench.py", 1)) == first
    second = keys(_planted(tmp_path / "bench.py", 2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_our_own_templates_are_known_by_the_sources() -> None:
    assert cache.source_fingerprint(clock.JIFFIES.factory) == ""
    typed: dict[str, Any] = {}
    exec("def one(): return 1\ndef two(): return 2", typed)
    one, two = (cache.source_fingerprint(typed[name]) for name in ("one", "two"))
    assert one and two and one != two


def test_what_came_with_the_installation_is_found_behind_the_cache(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path / "prebuilt"))
    cache.put("one.bc", b"installed")
    monkeypatch.setattr(cache, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setenv("XDPU_CACHE", str(tmp_path / "cache"))
    assert cache.get("one.bc") == b"installed" and cache.get("two.bc") is None
    cache.put("one.bc", b"newer")
    assert cache.get("one.bc") == b"newer"
    (tmp_path / "prebuilt" / "one.bc").chmod(0o666)
    (tmp_path / "cache" / "one.bc").unlink()
    assert cache.get("one.bc") is None, "others could have written it"
