"""The house's own rules: who imports what, what a start costs, what is shipped."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("xdp_runtime", "dataplane", "afxdp", "dpdk", "lb", "control")
HEAVY = ("llvmlite", "numba", "numpy", "pyroute2", "cffi", "elftools", "scapy", "asyncio", "yaml")


def modules() -> list[Path]:
    return [path for room in SHIPPED for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_import_contracts() -> None:
    """setup.cfg, [importlinter]: imports go down only; cffi and LLVM stay in their rooms."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--config", "setup.cfg", "--no-logo", "--no-cache"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_native_modules_stay_in_their_room() -> None:
    """An extension module is nothing the import contracts can see."""
    strangers = [f"{path.relative_to(ROOT)}: {name}" for path in modules()
                 for name in imports(path)
                 if "_native" in name.split(".") and name.split(".")[0] != path.parent.name]
    assert not strangers


@pytest.mark.parametrize("module", ["control.cli", "control.features"])
def test_start_is_light(module: str) -> None:
    """`xdpu --help` in 0.2 s: nothing heavy is imported before it is known what to do."""
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.skip(f"{module} is not written yet")
    code = (f"import sys, {module}; "
            f"print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({HEAVY!r})))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == ""


def test_requirements_are_imported() -> None:
    """What setup.cfg requires, some shipped module imports; and nothing else from outside."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    modules_of = {"pyelftools": "elftools", "PyYAML": "yaml"}
    required = {modules_of.get(line.split()[0], line.split()[0])
                for line in settings["options"]["install_requires"].splitlines()
                if line.strip() and not line.strip().startswith("#")}
    outside = {name.split(".")[0] for path in modules() for name in imports(path)}
    outside -= set(sys.stdlib_module_names) | set(SHIPPED)
    assert outside == required


def test_every_package_is_found() -> None:
    """A folder without __init__.py would be missing from the wheel without a word."""
    folders = {path.parent for path in modules()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_files_say_what_they_are() -> None:
    """One noun a file, and its first lines say which; more than 1,000 lines want a second."""
    silent, long = [], []
    for path in modules():
        text = path.read_text()
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            silent.append(str(path.relative_to(ROOT)))
        if text.count("\n") > 1000:
            long.append(str(path.relative_to(ROOT)))
    assert not silent
    assert not long


def test_readme_has_every_option_of_run() -> None:
    from control.cli import VERBS

    text = (ROOT / "README.md").read_text()
    run = next(verb for verb in VERBS if verb.words == "run")
    names = [name for option in run.options if not option.hidden
             for name in option.names.split() if name.startswith("--")]
    assert not [name for name in names if name not in text]


def test_objects_have_their_source() -> None:
    examples = ROOT / "examples"
    assert {p.stem for p in examples.glob("*.c")} == {p.stem for p in examples.glob("*.o")}
