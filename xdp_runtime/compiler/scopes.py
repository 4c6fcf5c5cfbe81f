"""Alias scopes: LLVM is told that packet, maps and run state are different memory.

Every access that is known to be into one of them names its scope, and all others as what it is not;
so values stay in registers across stores to other objects.
"""

from __future__ import annotations

SCOPES = 100  # first number of the alias scope metadata


def alias_scopes(maps: int) -> str:
    """Metadata: a scope for the packet, one for each map, one for the run state; each excludes
    all others.

    Object n has the list !(SCOPES + 2n) of itself and !(SCOPES + 2n + 1) of the others."""
    count = maps + 2
    domain, first = SCOPES - 1, SCOPES + 2 * count
    out = [f'!{domain} = distinct !{{!{domain}, !"xdpu"}}']
    for n in range(count):
        out.append(f"!{first + n} = distinct !{{!{first + n}, !{domain}}}")
        others = ", ".join(f"!{first + m}" for m in range(count) if m != n)
        out.append(f"!{SCOPES + 2 * n} = !{{!{first + n}}}")
        out.append(f"!{SCOPES + 2 * n + 1} = !{{{others}}}")
    return "\n".join(out)


def scope_of(number: int) -> str:
    return f", !alias.scope !{SCOPES + 2 * number}, !noalias !{SCOPES + 2 * number + 1}"
