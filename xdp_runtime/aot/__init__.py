"""Programs compiled ahead of time: a shared library, or an executable that needs no Python.

    build(obj, spec, Path("firewall.so"), workers=1)
    build(obj, spec, Path("firewall"), workers=2, standalone=True)

The program and its maps are machine code (compiler/aot.py); what is the same for all programs is C
(library.c, and main.c, capture.c, socket.c of an executable), and the host's C compiler puts them
together.  Results are those of `xdpu run`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from xdp_runtime.aot import image
from xdp_runtime.compiler.aot import Where, compile_ahead
from xdp_runtime.errors import ConfigError, LoadError, XdpuError
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.policy import ExtensionClass, enforce

HERE = Path(__file__).parent
_LIBRARY = ("library.c", "rings.c")
_STANDALONE = ("main.c", "capture.c", "socket.c", "records.c")
_EXPORTED = """{ global: xdpu_program; xdpu_workers; xdpu_run; xdpu_maps; xdpu_map_count;
    xdpu_map_find; xdpu_map_lookup; xdpu_map_update; xdpu_map_delete; xdpu_map_next_key;
    xdpu_ring_count; xdpu_ring_consume; xdpu_ring_event; xdpu_ring_lost; xdpu_ring_produce;
  local: *; };
"""


def build(obj: Object, spec: ProgramSpec, out: Path, *, workers: int = 1,
          where: Where | None = None, standalone: bool = False,
          grants: ExtensionClass | None = None) -> None:
    """Write `out`: a shared library, an executable, or, if its name ends in .o or `where` is
    another architecture, only the object file.  Raises LoadError, VerifyError, ConfigError,
    XdpuError; `out` is whole or not there.  `grants`: the class that the program is bound to."""
    where = where or Where()
    only_object = out.suffix == ".o" or not where.is_here
    if only_object and standalone:
        raise ConfigError("--standalone", "makes an executable of this machine only, and this is "
                          f"{'for another' if not where.is_here else 'an object file'}",
                          "leave it out: the result is an object file")
    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        'put it in SEC("xdp")')
    if not out.name or (out.exists() and not out.is_file()):  # a device would be replaced
        raise ConfigError(f"{out}", "is not a file that could be written")
    fuel = None if grants is None else enforce(obj, spec, grants)
    code = compile_ahead(obj, spec, workers, where, fuel)
    try:
        with tempfile.TemporaryDirectory(prefix="xdpu-aot-") as folder:
            made = Path(folder) / "made"
            if only_object:
                made.write_bytes(code)
            else:
                (Path(folder) / "program.o").write_bytes(code)
                image.write(obj, spec, workers, Path(folder))
                _link(Path(folder), made, standalone)
            _move(made, out)
    except OSError as error:
        raise XdpuError("aot", f"no temporary files: {error.strerror or error}",
                        f"make room in {tempfile.gettempdir()}, or set TMPDIR") from error


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise XdpuError("aot", "there is no C compiler", "apt-get install gcc libc6-dev, or -o PROG.o")


def _link(folder: Path, made: Path, standalone: bool) -> None:
    (folder / "exported").write_text(_EXPORTED)
    sources = [*_LIBRARY, *(_STANDALONE if standalone else ())]
    command = [_compiler(), "-std=gnu11", "-O2", "-fPIC", "-Wall", "-I", str(HERE),
               "-I", str(folder), "-include", str(folder / "layout.h"),
               *(str(HERE / name) for name in sources), str(folder / "image.c"),
               str(folder / "program.o"), "-o", str(made), "-pthread", "-Wl,-z,noexecstack"]
    if not standalone:
        command += ["-shared", f"-Wl,--version-script={folder / 'exported'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise XdpuError("aot", f"{command[0]} failed (exit code {done.returncode})", "-v shows why",
                        done.stderr)


def _move(made: Path, out: Path) -> None:
    """By way of a file beside it, so that nobody sees half of one."""
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.copy(made, beside)
        os.replace(beside, out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        kind = XdpuError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
        raise kind(str(out), f"cannot be written: {error.strerror or error}") from error
