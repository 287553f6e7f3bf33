"""Experiment files: read strictly, and turned into cells that are shared where they can be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from steper.errors import SteperError
from steper.plan import Plan, make_plan
from steper.study import parse_experiment, read_experiment

REPO = Path(__file__).resolve().parents[2]
READY = sorted((REPO / "configs" / "experiments").glob("*.toml"))
OUT = Path("out")

BASIC: dict[str, Any] = {
    "question": "Is it so?",
    "seeds": [0, 1],
    "data": {"world": {"world": {"train_questions": 20, "test_questions": 10}}},
    "rollout": {"teacher": "world"},
    "train": {"base": "base-reader"},
    "arms": {
        "base": {"model": "base-reader"},
        "a": {"train": {"objective": "vanilla"}},
        "b": {"train": {"objective": "uniform"}},
    },
}
FILES = {"files": {"corpus": "c.jsonl", "questions": "q.jsonl", "rules": "musique"}}


def plan(**changes: Any) -> Plan:
    data = copy.deepcopy(BASIC) | changes
    return make_plan(parse_experiment(data, where="x.toml"), OUT, where="x.toml")


def folders(found: Plan, stage: str) -> list[str]:
    return [str(c.folder.relative_to(OUT)) for c in found.cells.values() if c.stage == stage]


def refused(**changes: Any) -> str:
    with pytest.raises(SteperError) as error:
        plan(**changes)
    return str(error.value)


# ---- sharing ---------------------------------------------------------------------------------


def test_what_arms_share_is_one_cell() -> None:
    found = plan()
    assert folders(found, "rollout") == [f"world/seed-{n}/rollout/plain" for n in (0, 1)]
    assert len(folders(found, "build")) == len(folders(found, "index")) == 2
    assert folders(found, "train")[:2] == [
        "world/seed-0/train/objective=vanilla",
        "world/seed-1/train/objective=vanilla",
    ]
    assert {label: len(runs) for label, runs in found.evaluations.items()} == dict.fromkeys(
        ("base", "a", "b"), 2
    )


def test_arms_that_train_alike_share_the_training() -> None:
    arms = BASIC["arms"] | {"c": {"train": {"objective": "uniform"}, "evaluate": {"limit": 5}}}
    found = plan(arms=arms)
    assert found.trainings["b"] == found.trainings["c"]
    assert found.evaluations["b"] != found.evaluations["c"]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_cell_comes_after_all_that_it_needs(path: Path) -> None:
    """And every ready file can be planned, with all its options valid."""
    found = make_plan(read_experiment(path), OUT, where=str(path))
    done: set[Path] = set()
    for folder, cell in found.cells.items():
        assert done.issuperset(cell.needs)
        assert cell.folder == folder and folder not in done
        done.add(folder)
    assert len(next(iter(found.evaluations.values()))) == 5  # seeds
    assert found.pairs and str(path.relative_to(REPO)) in path.read_text()


def test_adding_an_arm_leaves_the_folders_of_the_others() -> None:
    arms = {"new": {"train": {"objective": "difficulty"}}} | BASIC["arms"]
    assert plan().cells.items() <= plan(arms=arms).cells.items()


def test_a_change_upstream_is_a_change_downstream() -> None:
    arms = {"k": {"rollout": {"k": 3}}, "plain": {}}
    found = plan(arms=arms)
    assert "world/seed-0/examples/rollout.k=3" in folders(found, "build")
    assert "world/seed-0/train/rollout.k=3" in folders(found, "train")


def test_a_student_brings_its_setting_and_other_models_take_the_files() -> None:
    found = plan(evaluate={"k": 2, "max_tokens": 9})
    options = {arm: found.cells[found.evaluations[arm][0]].options for arm in ("base", "a")}
    assert options["base"]["k"] == 2 and "k" not in options["a"]
    assert options["base"]["max_tokens"] == options["a"]["max_tokens"] == 9
    assert options["a"]["model"] == str(found.trainings["a"][0] / "student")


# ---- data ------------------------------------------------------------------------------------


def test_files_are_indexed_and_rolled_out_once_for_all_seeds() -> None:
    found = plan(data=FILES)
    assert folders(found, "rollout") == ["files/rollout/plain"]
    assert folders(found, "train") == [
        f"files/seed-{n}/train/objective={o}" for o in ("vanilla", "uniform") for n in (0, 1)
    ]
    assert len(found.evaluations["base"]) == 1  # the same model on the same files
    assert found.cells[found.evaluations["a"][1]].options["rules"] == "musique"


def test_a_student_of_one_data_set_is_asked_on_another() -> None:
    data = BASIC["data"] | {"other": {"world": {"split": 0.0}}}
    found = plan(data=data, arms={"a": {"train_on": "world", "test_on": "other"}})
    cell = found.cells[found.evaluations["a"][0]]
    assert cell.options["model"] == str(OUT / "world/seed-0/train/plain/student")
    assert cell.options["index"] == str(OUT / "other/seed-0/index/plain")
    assert cell.folder == OUT / "other/seed-0/evaluate/a"


# ---- grid, tokens, pairs -----------------------------------------------------------------------


def test_a_grid_makes_every_combination_an_arm() -> None:
    grid = {"train.objective": ["vanilla", "uniform"], "train.lr": [0.1, 0.2]}
    found = plan(arms={"s": {"grid": grid}, "m": {"model": "base-reader"}}, compare=[])
    assert list(found.evaluations) == [
        "s objective=vanilla lr=0.1",
        "s objective=vanilla lr=0.2",
        "s objective=uniform lr=0.1",
        "s objective=uniform lr=0.2",
        "m",
    ]


def test_models_that_are_not_trained_take_no_axis_of_training() -> None:
    found = plan(grid={"train.lr": [0.1, 0.2], "evaluate.limit": [5]})
    assert [label for label in found.evaluations if label.startswith("base")] == ["base limit=5"]
    assert len(found.evaluations) == 5


def test_equal_tokens_need_both_trainings() -> None:
    arms = BASIC["arms"] | {"e": {"train": {"objective": "vanilla"}, "equal_tokens_to": "b"}}
    found = plan(arms=arms)
    cell = found.cells[found.trainings["e"][0]]
    assert cell.equal_tokens == (found.trainings["a"][0], found.trainings["b"][0])
    assert cell.needs == cell.equal_tokens


def test_every_arm_is_compared_with_the_first_by_default() -> None:
    assert plan().pairs == [("a", "base"), ("b", "base")]
    assert plan(baseline="a").pairs == [("base", "a"), ("b", "a")]
    assert plan(compare=[["b", "a"]]).pairs == [("b", "a")]


def test_labels_that_no_file_name_can_hold_stay_apart() -> None:
    found = plan(arms={"a/b": {"model": "base-reader"}, "a?b": {"model": "world"}})
    assert len({runs[0] for runs in found.evaluations.values()}) == 2


# ---- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"qestion": "x"}, "Perhaps you meant 'question'"),
        ({"train": {"base": "m", "objektive": "x"}}, "Perhaps you meant 'objective'"),
        ({"train": {"base": "m", "seed": 3}}, "train.seed: the experiment sets it"),
        ({"train": {"base": "m", "lr": -1.0}}, "train.lr"),
        ({"train": {}}, "no model to start from"),
        ({"arms": {"a": {"modle": "x"}}}, "Perhaps you meant 'model'"),
        ({"arms": {"a": {"train": {"taks": []}}}}, "arms.a.train.taks"),
        ({"arms": {"a": {"test_on": "wrld"}}}, "Perhaps you meant 'world'"),
        ({"arms": {"a": {"equal_tokens_to": "bb"}, "b": {}}}, "Perhaps you meant 'b'"),
        ({"arms": {"a": {"model": "x"}, "b": {"equal_tokens_to": "a"}}}, "there is no 'a'"),
        ({"arms": {}}, "arms"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is given twice"),
        ({"compare": [["a", "c"]]}, "there is no 'c'"),
        ({"baseline": "basee"}, "Perhaps you meant 'base'"),
        ({"grid": {"train.objektive": ["x"]}}, "Perhaps you meant 'objective'"),
        ({"grid": {"objective": ["x"]}}, "is no axis"),
        ({"data": {"d": {}}}, "needs either world, or both"),
        ({"data": {"d": {"world": {}, "corpus": "c", "questions": "q"}}}, "needs either world"),
        ({"data": {"d": {"world": {"splt": 1.0}}}}, "Perhaps you meant 'split'"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(changes: dict[str, Any], told: str) -> None:
    message = refused(**changes)
    assert told in message and "x.toml" in message


def test_values_on_the_command_line_take_precedence(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('question = "?"\n[arms.a]\nmodel = "m"\n[data.w.world]\nsplit = 0.5\n')
    found = read_experiment(path, ["data.w.world.split=0.25", "arms.a.model=other/model"])
    assert found.data["w"].world and found.data["w"].world.split == 0.25
    assert found.arms["a"].model == "other/model"
    for wrong in ("data.w.world.split", "question.x=1"):
        with pytest.raises(SteperError, match="--set"):
            read_experiment(path, [wrong])


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"question = 3\n"])
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e.toml").write_bytes(content)
    with pytest.raises(SteperError, match=r"e\.toml"):
        read_experiment(tmp_path / "e.toml")
    with pytest.raises(SteperError, match="no such file"):
        read_experiment(tmp_path / "none.toml")
