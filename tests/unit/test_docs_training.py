"""docs/training.md names only options, recipes and estimates that exist."""

from __future__ import annotations

import re
from pathlib import Path

from steper import config
from steper.loss import build_weights

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
RECIPES = sorted((REPO / "configs").glob("*.toml"))

LAUNCHERS = ("torchrun", "accelerate launch")


def options(command: str) -> set[str]:
    fields = getattr(config, f"{command.title()}Config").model_fields
    found = {f"--{name.replace('_', '-')}" for name in fields} | {"--config", "--help"}
    # What the audit tells the user to roll out with; its message is quoted.
    return found | (options("rollout") & {"--k", "--max-steps"} if command == "train" else set())


def named() -> list[tuple[str, str]]:
    """(command, option) wherever one is named; `train` where no command stands before it."""
    found = []
    pattern = rf"{'|'.join(LAUNCHERS)}|\bsteper(?:\.cli)? [a-z]+|(?<!\S)`?--[a-z][\w-]*"
    for line in TEXT.replace("\\\n", " ").splitlines():
        command = "train"
        for word in re.findall(pattern, line):
            if word in LAUNCHERS:
                command = ""  # its own options, until steper's command
            elif word.startswith("steper"):
                command = word.split()[1]
            elif command:
                found.append((command, word.strip("`")))
    return found


def test_every_option_exists() -> None:
    assert len(named()) > 60
    wrong = [(command, name) for command, name in named() if name not in options(command)]
    assert not wrong


def test_every_file_exists() -> None:
    files = re.findall(r"(?:configs|src|tests)/[\w./-]+\.\w+", TEXT)
    assert files
    assert not [file for file in files if not (REPO / file).is_file()]


def test_every_recipe_is_listed_with_the_estimate_it_states() -> None:
    for path in RECIPES:
        recipe = path.read_text(encoding="utf-8")
        stated = re.search(r"Memory: about (\d+) GiB on (?:each of )?(\d) GPU", recipe)
        room = re.search(r"GPUs? of (\d+) GB", recipe)
        assert stated and room
        (row,) = re.findall(rf"^\| `configs/{path.name}`.*", TEXT, re.MULTILINE)
        assert row.endswith(f" | {stated[1]} |"), path.name
        assert f" | {stated[2]} of {room[1]} GB" in row, path.name


def test_the_table_of_objectives_says_their_weights() -> None:
    assert "| `vanilla` | 0, 0, 1 |" in TEXT
    assert build_weights("vanilla").weights() == (0, 0, 1)
    assert "| `uniform` | 1/3, 1/3, 1/3 |" in TEXT
    assert build_weights("uniform").weights() == (1 / 3, 1 / 3, 1 / 3)
    assert "| `fixed` | `--lambdas` / 3 |" in TEXT
    assert build_weights("fixed", lambdas=(3, 6, 9)).weights() == (1, 2, 3)
