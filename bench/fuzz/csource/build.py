"""C text -> Object, by clang, or by clang's front end and the LLVM of llvmlite.

clang 14 knows the instruction sets v1 to v3.  v4 (signed division, sign-extending loads and moves,
gotol, other byte swaps) needs a newer LLVM than what distributions have: llvmlite brings 22, whose
BPF back end takes clang's bitcode.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llvmlite import binding as llvm

from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.object import Object

CLANG = shutil.which("clang") or ""
NEEDS = "clang and libbpf's headers make C programs into objects: apt install clang libbpf-dev"
_ARCH = os.uname().machine
_LEVELS = ("-O1", "-O2", "-O2", "-O2", "-O3", "-Os")
_SWITCHES = ((), (), (), ("-fno-inline-functions",), ("-fno-unroll-loops",), ("-funroll-loops",))
# What would be undefined makes a program of nothing: clang leaves out what leads there.
_DEFINED = ("-fwrapv", "-fno-strict-aliasing")


class Uncompilable(Exception):
    """The compiler refuses what was generated."""


@dataclass(frozen=True)
class Build:
    """How a seed's text becomes an object."""

    version: int  # of the instruction set, 1 to 4
    llvm22: bool  # the back end of llvmlite
    flags: tuple[str, ...]


def random_build(seed: int) -> Build:
    rng = random.Random(f"build {seed}")
    version = rng.choice((1, 2, 3, 3, 3, 4, 4, 4))
    return Build(version, version == 4 or rng.random() < 0.3,
                 (rng.choice(_LEVELS), *rng.choice(_SWITCHES)))


def build(text: str, how: Build, name: str) -> Object:
    with tempfile.TemporaryDirectory(prefix="xdpu-c-") as scratch:
        source, out = Path(scratch) / f"{name}.c", Path(scratch) / f"{name}.o"
        source.write_text(text)
        command = [CLANG, "-target", "bpf", *how.flags, *_DEFINED, "-g", "-w",
                   f"-mcpu=v{min(3, how.version)}", f"-I/usr/include/{_ARCH}-linux-gnu",
                   "-fno-jump-tables", "-fdebug-compilation-dir=.", "-c", source.name,
                   "-o", out.name]
        if how.llvm22:
            command.append("-emit-llvm")
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            raise Uncompilable(_first_error(done.stderr))
        if how.llvm22:
            out.write_bytes(_object(out.read_bytes(), how))
        try:
            return read_object(out)
        except LoadError as error:
            raise Uncompilable(error.what) from error


def _object(bitcode: bytes, how: Build) -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        module = llvm.parse_bitcode(bitcode)
        machine = llvm.Target.from_triple("bpfel").create_target_machine(
            cpu=f"v{how.version}", opt=2)
        data: bytes = machine.emit_object(module)
        return data
    except RuntimeError as error:
        raise Uncompilable(str(error)) from error


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()[:1]
    return lines[0].partition("error: ")[2] or lines[0] if lines else "no words"
