"""The errors a caller branches on.  A message is one sentence: what, why, and the mend.

Everything else in the project raises builtin exceptions.  `exit_code` follows xdp_sample.h
(0 ok, 1 failure, 2 usage, 3 interface/driver/XDP, 4 BPF load/verify/JIT, 5 memory).
"""

from __future__ import annotations


class XdpuError(Exception):
    """`what: why (mend)`; `kind` names the error in JSON output, `detail` is shown with -v."""

    exit_code = 1
    kind = "error"

    def __init__(self, what: str, why: str = "", mend: str = "", detail: str = "") -> None:
        self.what, self.why, self.mend, self.detail = what, why, mend, detail
        text = what
        if why:
            text += f": {why}"
        if mend:
            text += f" ({mend})"
        # names come from files: whatever is in them, it stays one sentence
        super().__init__("".join(c if c.isprintable() else "?" for c in text))


class ConfigError(XdpuError):
    """An option or file the user gave cannot be used."""

    exit_code = 2
    kind = "usage"


class PortError(XdpuError):
    """An interface, driver, socket or capture file refuses."""

    exit_code = 3
    kind = "port"


class LoadError(XdpuError):
    """An ELF object or its BTF cannot be read, or asks for what does not exist here."""

    exit_code = 4
    kind = "load"


class VerifyError(LoadError):
    """A program is not proven safe.  `insn` is the slot of the offending instruction."""

    kind = "verify"

    def __init__(self, what: str, why: str = "", mend: str = "", detail: str = "",
                 insn: int | None = None) -> None:
        super().__init__(what, why, mend, detail)
        self.insn = insn


class OutOfMemory(XdpuError):
    """Memory, locked memory or huge pages do not suffice."""

    exit_code = 5
    kind = "memory"
