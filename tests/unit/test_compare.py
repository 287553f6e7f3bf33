"""`steper compare`: every label with the first, as tables and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluations import evaluation
from steper import cli
from steper.compare import compare_evaluations
from steper.config import CompareConfig
from steper.errors import SteperError
from steper.scores import MEASURES
from steper.store import read_json


def tables(*folders: Path, **options: Any) -> str:
    return compare_evaluations(CompareConfig(evaluations=folders, **options))


def cells(row: str) -> list[str]:
    return [cell for cell in row.split("  ") if cell.strip()]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two seeds of a base and of an arm that is right five times as often, on 20 questions."""
    right = {("base", 0): 4, ("base", 1): 2, ("new", 0): 16, ("new", 1): 18}
    return [
        evaluation(
            tmp_path / f"{label}{seed}",
            label,
            {
                "em": [float(n < hits) for n in range(20)],
                "prompt_tokens": [1000 * (1 + (label == "new")) + n for n in range(20)],
                "cost": [0.000125 * (1 + (label == "new"))] * 20,
            },
            seed=seed,
        )
        for (label, seed), hits in right.items()
    ]


def test_the_table_has_means_and_the_paired_difference(folders: list[Path]) -> None:
    heading, _, base, new, *_ = tables(*folders, measures=("em",)).splitlines()
    assert cells(heading)[0].strip() == "em, %"
    assert base.split()[:2] == ["base", "15.0"] and new.split()[:2] == ["new", "85.0"]
    assert new.split()[4:5] == ["+70.0"] and new.split()[-1] == "higher"
    # Of seeds +60 and +80: t(0.975, 1 degree of freedom) = 12.706, times 14.142 / sqrt(2).
    assert "20" in new.split() and "-57.1 to +197.1 (2)" in new


def test_amounts_are_shown_as_they_are(folders: list[Path]) -> None:
    text = tables(*folders, measures=("prompt_tokens", "cost"))
    tokens, cost = text.split("\n\n")[:2]
    assert tokens.splitlines()[2].split()[:2] == ["base", "1,010"]
    assert tokens.splitlines()[3].split()[4] == "+1,000"
    assert cost.splitlines()[2].split()[1] == "0.000125"
    assert cost.splitlines()[3].split()[4] == "+0.000125"


def test_what_the_runs_do_not_know_is_a_dash(folders: list[Path]) -> None:
    rows = tables(*folders, measures=("recall",)).split("\n\n")[0].splitlines()[2:]
    assert [row.split() for row in rows] == [["base", "-"], ["new", "-", "-"]]


def test_the_figures_are_written_for_programs(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "made" / "figures.json"
    tables(*folders, measures=("em", "recall", "cost"), json_out=out)
    found = read_json(out)
    assert found["kind"] == "comparison"
    assert [arm["label"] for arm in found["arms"]] == ["base", "new"]
    base = found["arms"][0]
    assert base["folders"] == [str(folder) for folder in folders[:2]]
    assert (base["n"], base["seeds"], base["questions_sha256"]) == (40, [0, 1], ["q", "q"])
    assert base["metrics"]["em"]["value"] == pytest.approx(0.15)
    assert base["metrics"]["recall"] is None
    em, cost = found["comparisons"]  # none in recall
    assert (em["a"], em["b"], em["measure"], cost["measure"]) == ("new", "base", "em", "cost")
    assert em["difference"]["value"] == pytest.approx(0.7) and em["difference"]["n"] == 20
    assert em["p"] < 0.001 and em["by_seed"] == pytest.approx([0.6, 0.8])
    assert em["over_seeds"]["n"] == 2


def test_every_arm_meets_the_first_only(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    arms = [evaluation(tmp_path / name, name, {"em": [1, 0]}) for name in ("c", "a", "b")]
    tables(*arms, json_out=out)
    found = [(one["a"], one["b"]) for one in read_json(out)["comparisons"]]
    assert set(found) == {("a", "c"), ("b", "c")}


def test_arms_that_share_some_questions_are_told_of(tmp_path: Path) -> None:
    few = evaluation(tmp_path / "few", "few", {"em": [1] * 3})
    many = evaluation(tmp_path / "many", "many", {"em": [0] * 5})
    text = tables(many, few)
    assert "few answered 3 questions and many 5, 3 of them the same." in text
    assert "different number of questions" in text  # the report's own notes
    as_many = evaluation(tmp_path / "as many", "as many", {"em": [1] * 5})
    assert "of them the same" not in tables(many, as_many)


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", "a", {"em": [1]})
    again = evaluation(tmp_path / "again", "a", {"em": [1]})
    other = evaluation(tmp_path / "b", "b", {"em": [1]}, questions="other")
    out = tmp_path / "x.json"
    with pytest.raises(SteperError, match=r"takes two labels to compare, found a\..*--label"):
        tables(a, again, json_out=out)
    with pytest.raises(SteperError, match="found none"):
        tables(json_out=out)
    with pytest.raises(SteperError, match=rf"{other}: b and a share no questions\."):
        tables(a, other, json_out=out)
    with pytest.raises(SteperError, match=r"no measure 'EM'.*em, f1"):
        tables(a, other, measures=("EM",), json_out=out)
    with pytest.raises(SteperError, match="is a folder"):
        tables(a, other, json_out=tmp_path)
    assert not out.exists()


def test_the_command_takes_every_measure(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    runs = [str(folder) for folder in folders]
    assert cli.run(["compare", *runs, "--measures", *MEASURES, "--json", str(out)]) == 0
    shown = capsys.readouterr().out.split("\n\n")
    assert [table.split()[0].rstrip(",") for table in shown[: len(MEASURES)]] == list(MEASURES)
    assert out.is_file()
