"""The verifier: nothing unproven runs, and what is proven makes code faster.

    report = verify(obj, obj.program("firewall"))
    if not report.ok:
        print(report.errors[0].text)

Stages, in reading order: obligations.py (what must hold), flow.py (the program's shape),
domain.py and scalar.py (what is known), transfer.py with access.py, arithmetic.py, branches.py,
calls.py and stack.py (proving and moving on), explore.py and prune.py (all paths), facts.py (what
lowering gets).
"""

from __future__ import annotations

from xdp_runtime.verifier.report import Report, verify

__all__ = ["Report", "verify"]
