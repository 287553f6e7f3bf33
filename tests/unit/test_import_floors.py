"""Imports run downwards: a module imports only from its own or a lower floor, without cycles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"

# A name covers the modules below it: `lm` stands for `lm.annotated` and `lm.local` too.
FLOORS = (
    "types protocols errors config store",  # the nouns
    "metrics prompts setting strategies grounding selection filters examples chains packing loss "
    "prose scores",  # pure
    "study records releases datasets corpus retrieval accounts batching lm world templates models "
    "driver judge grading arms predictions attention batches audit trainer students "
    "memory",  # the outside world
    "index serve cluster rollout build preflight train evaluate judging recall report compare "
    "trajectories ask export plan cells experiment demo",  # the verbs
    "cli",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

Imports = dict[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Every module below the folder of a package, by its dotted name."""
    named = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(package: Path) -> Imports:
    """The modules of the package that each of its modules imports, at any depth of the code."""
    known = modules(package)
    found: Imports = {}
    for module, path in known.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: write the whole name of the module"
                # `from package import module` and `from module import thing` look the same.
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    names.add(whole if whole in known else node.module or "")
        found[module] = {name for name in names if name in known}
    return found


def top(module: str) -> str:
    """The part of a module's name that has a floor."""
    return module.split(".")[1] if "." in module else ""


def unlisted(found: Imports) -> set[str]:
    return {top(module) for module in found} - {""} - FLOOR.keys()


def upward(found: Imports) -> list[str]:
    """One line for each import that goes up."""
    return [
        f"{module} (floor {FLOOR[top(module)]}) imports {name} (floor {FLOOR[top(name)]})"
        for module, names in found.items()
        for name in sorted(names)
        if top(module) and top(name) and FLOOR[top(name)] > FLOOR[top(module)]
    ]


def cycle(found: Imports) -> list[str]:
    """The modules of one import cycle, or nothing."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


@pytest.fixture(scope="module")
def found() -> Imports:
    return imports(SRC / "steper")


def test_every_module_has_one_floor(found: Imports) -> None:
    names = Counter(" ".join(FLOORS).split())
    assert [name for name, times in names.items() if times > 1] == []
    assert unlisted(found) == set(), "new modules: give each a floor in FLOORS of this test"


def test_imports_run_downwards(found: Imports) -> None:
    assert upward(found) == []


def test_no_cycles(found: Imports) -> None:
    assert cycle(found) == []


def test_the_package_itself_imports_nothing(found: Imports) -> None:
    assert found["steper"] == set()


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from steper.index import x", ["steper.types (floor 0) imports steper.index (floor 3)"]),
        ("import steper.index", ["steper.types (floor 0) imports steper.index (floor 3)"]),
        ("def f():\n    from steper import index", [
            "steper.types (floor 0) imports steper.index (floor 3)"
        ]),
        ("from steper.errors import x", []),
    ],
)  # fmt: skip
def test_the_walk_sees_what_is_wrong(tmp_path: Path, source: str, wrong: list[str]) -> None:
    package = tmp_path / "steper"
    package.mkdir()
    for name in ("__init__", "errors", "index", "types"):
        (package / f"{name}.py").touch()
    (package / "types.py").write_text(source, encoding="utf-8")
    assert upward(imports(package)) == wrong


def test_the_walk_sees_cycles_and_new_modules(tmp_path: Path) -> None:
    package = tmp_path / "steper"
    (package / "new").mkdir(parents=True)
    (package / "new" / "one.py").write_text("from steper.new import two", encoding="utf-8")
    (package / "new" / "two.py").write_text("import steper.new.one", encoding="utf-8")
    found = imports(package)
    assert set(cycle(found)) == {"steper.new.one", "steper.new.two"}
    assert unlisted(found) == {"new"}


def test_the_command_line_loads_no_heavy_library() -> None:
    code = (
        "import sys, steper.cli; steper.cli.run(['--help']);"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"
