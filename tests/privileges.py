"""What a test needs of the machine: marks that skip, and say why."""

from __future__ import annotations

import os
from functools import cache

import pytest


@cache
def bpf_refusal() -> str:
    """Why bpf(2) loads no XDP program here; empty if it does."""
    from xdp_runtime.errors import LoadError
    from xdp_runtime.isa import Exit, Imm, Mov, encode
    from xdp_runtime.kernel import load_raw

    try:
        os.close(load_raw(encode((Mov(True, 0, Imm(2)), Exit()))))
    except (LoadError, OSError) as error:
        return str(error)
    return ""


def needs_bpf() -> list[pytest.MarkDecorator]:
    """For `pytestmark`: marked `root`, skipped only where the kernel refuses a program."""
    refusal = bpf_refusal()
    return [pytest.mark.root,
            pytest.mark.skipif(bool(refusal), reason=f"the kernel loads no program: {refusal}")]
