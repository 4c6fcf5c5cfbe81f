"""Ask the real kernel whether the corpus is right.

    python -m tests.xdp_runtime.verifier.confirm [--write] [--log NAME] [FILES]

Prints each disagreement and `N cases, M disagree`.  With --write it fills in `verdict: ?` and the
kernel's words; `kind: ?` gets the kind those words suggest.  A verdict that is there is never
changed.  --log shows the whole log of the cases of that name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.xdp_runtime.verifier.cases import Case, all_cases
from tests.xdp_runtime.verifier.kernel_load import Answer, ask
from tests.xdp_runtime.verifier.kernel_words import kind_of
from xdp_runtime.errors import LoadError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="confirm")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--log", metavar="NAME", default="")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args(arguments)
    cases = all_cases([path.absolute() for path in options.files] or None)
    if options.log:
        for case in cases:
            if case.name == options.log:
                print(f"{case.id}\n{ask(case, 2).log}")
        return 0
    answers: list[tuple[Case, Answer]] = []
    disagree = 0
    for case in cases:
        try:
            answer = ask(case)
        except (ValueError, OSError, LoadError) as error:
            raise SystemExit(f"{case.path.name}:{case.line}: {case.name}: {error}") from error
        answers.append((case, answer))
        if case.verdict not in ("?", answer.verdict):
            disagree += 1
            print(f"{case.path.name}:{case.line}: {case.name}: expected {case.verdict}, "
                  f"the kernel: {answer.verdict} {answer.line}")
        elif answer.line != case.kernel and case.kernel:
            print(f"{case.path.name}:{case.line}: {case.name}: now says {answer.line!r}")
    if options.write:
        for path in dict.fromkeys(case.path for case in cases):
            write(path, [(c, a) for c, a in answers if c.path == path])
    print(f"{len(cases)} cases, {disagree} disagree")
    return 1 if disagree else 0


def write(path: Path, answers: list[tuple[Case, Answer]]) -> None:
    lines = path.read_text().splitlines()
    for case, answer in reversed(answers):  # from the end, so that line numbers stay right
        if case.verdict not in ("?", answer.verdict) or "verdict" not in case.at:
            continue
        if answer.accepted:
            for name in sorted({"kind", "kernel"} & set(case.at), key=case.at.__getitem__,
                               reverse=True):
                del lines[case.at[name] - 1]
        else:
            kernel = f'kernel: "{answer.line}"'
            if "kernel" in case.at:
                lines[case.at["kernel"] - 1] = kernel
            else:
                lines.insert(max(case.at["verdict"], case.at.get("kind", 0)), kernel)
            kind = f"kind: {kind_of(answer.line)}"
            if "kind" not in case.at:
                lines.insert(case.at["verdict"], kind)
            elif case.kind == "?" or case.kernel not in ("", answer.line):
                lines[case.at["kind"] - 1] = kind
        lines[case.at["verdict"] - 1] = f"verdict: {answer.verdict}"
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
