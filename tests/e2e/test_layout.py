"""The two prompt layouts on the road: chosen at rollout or at build, and carried along from there.

The world's teacher reads passages and not prompts, so both layouts give the same trajectories.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from road import Road
from steper.audit import encode
from steper.build import read_examples
from steper.cli import run
from steper.config import TrainConfig
from steper.errors import SteperError
from steper.lm.local import load_tokenizer
from steper.models import read_setting
from steper.packing import pack
from steper.rollout import read_trajectories
from steper.train import train

WORLD = ("--prompt", "world", "--k", 2, "--max-steps", 6)


def steper(*arguments: object) -> None:
    assert run([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def interleaved(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a `rollout` and its `examples` in the interleaved layout."""
    folder = tmp_path_factory.mktemp("interleaved")
    steper(
        "rollout", "--index", road.index, "--questions", road.questions, "--teacher", "world",
        *WORLD, "--layout", "interleaved", "--out", folder / "rollout",
    )  # fmt: skip
    steper("build", "--rollout", folder / "rollout", "--out", folder / "examples")
    return folder


def test_every_trajectory_becomes_one_causal_path_of_tokens(road: Road, interleaved: Path) -> None:
    """Nothing branches off: the whole trajectory trains for the tokens of its last step."""
    folder = interleaved / "examples"
    template = read_setting(folder / "setting.json").template
    tokenizer = load_tokenizer(str(road.model))
    groups, audit = encode(read_examples(folder), tokenizer, template=template, max_length=4096)
    assert not audit.findings
    for tree in pack([[example.ids for example in group] for group in groups]).trees:
        assert tree.trunk == tree.end
    config = TrainConfig(
        data=folder, out=interleaved / "run", base=str(road.model), epochs=1.0, device="cpu"
    )
    counts = json.loads((train(config) / "manifest.json").read_text())["counts"]
    assert counts["unique_share"] == pytest.approx(audit.unique / audit.tokens, abs=1e-3)


def test_every_trajectory_becomes_one_text(interleaved: Path) -> None:
    assert read_setting(interleaved / "examples" / "setting.json").template.layout == "interleaved"
    examples = read_examples(interleaved / "examples")
    follow = [two for two in pairwise(examples) if two[0].trajectory_id == two[1].trajectory_id]
    assert len(follow) > 20
    for example, following in follow:
        assert following.prompt.startswith(example.prompt + example.target)
    # As long as no search brings anything new, the turn is a sentence only.
    empty = [
        (trajectory.question.id, number)
        for trajectory in read_trajectories(interleaved / "rollout")
        for number, step in enumerate(trajectory.steps, start=1)
        if number > 1 and not step.passages
    ]
    of_empty = [e for e in examples if (e.trajectory_id, e.step) in empty]
    assert of_empty
    for example in of_empty:
        assert example.prompt.splitlines()[-3::2] == ["Reasoning:", "Reasoning:"]


def test_a_build_lays_out_anew_what_was_rolled_out(
    road: Road, interleaved: Path, tmp_path: Path
) -> None:
    for rollout, layout, same in (
        (road.rollout, "interleaved", interleaved / "examples"),
        (interleaved / "rollout", "grouped", road.examples),
    ):
        out = tmp_path / layout
        steper("build", "--rollout", rollout, "--layout", layout, "--out", out)
        for name in ("examples.jsonl", "setting.json"):
            assert (out / name).read_bytes() == (same / name).read_bytes()
        targets = json.loads((out / "manifest.json").read_text())["config"]["targets"]
        assert targets == {"grouped": "cumulative", "interleaved": "incremental"}[layout]


def test_an_evaluation_asks_in_the_layout(road: Road, interleaved: Path, tmp_path: Path) -> None:
    common = ("evaluate", "--model", "world", "--index", road.index, "--questions", road.questions)
    steper(*common, *WORLD, "--layout", "interleaved", "--out", tmp_path / "evaluation")
    evaluation = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    setting = json.loads((interleaved / "rollout" / "setting.json").read_text())
    assert evaluation["setting"] == setting and setting["template"]["layout"] == "interleaved"


def test_cumulative_targets_are_refused_before_anything_is_written(
    road: Road, interleaved: Path, tmp_path: Path
) -> None:
    cumulative = ("--targets", "cumulative", "--out", tmp_path / "out")
    for arguments in (
        ("--rollout", interleaved / "rollout", *cumulative),
        ("--rollout", road.rollout, "--layout", "interleaved", *cumulative),
    ):
        with pytest.raises(SteperError, match="Leave --targets out, or build with --layout"):
            steper("build", *arguments)
        assert not (tmp_path / "out").exists()


def test_a_student_is_asked_in_the_layout_it_was_taught_in(
    road: Road, interleaved: Path, tmp_path: Path
) -> None:
    def refusal(taught: Path, *asked: object) -> str:
        """Three passages are refused after prompt and layout are found to be right."""
        student = tmp_path / taught.parent.name
        student.mkdir(exist_ok=True)
        (student / "steper.json").write_bytes((taught / "setting.json").read_bytes())
        with pytest.raises(SteperError) as caught:
            steper(
                "evaluate", "--model", student, "--index", road.index, "--questions",
                road.questions, "--out", tmp_path / "e", "--k", 3, *asked,
            )  # fmt: skip
        assert not (tmp_path / "e").exists()
        return str(caught.value)

    own = interleaved / "examples"
    assert "k = 2, not 3" in refusal(own)
    assert "k = 2, not 3" in refusal(own, "--prompt", "world", "--layout", "interleaved")
    message = refusal(own, "--layout", "grouped")
    assert "layout = 'interleaved', not 'grouped'. Leave --layout out." in message
    # A wording of one's own that names a layout asks for it.
    (tmp_path / "mine.toml").write_text(
        'instruction = ""\npassage = "Passage: {title}. {text}"\nlayout = "interleaved"\n'
    )
    assert "k = 2, not 3" in refusal(own, "--prompt", tmp_path / "mine.toml")
    assert "Leave --prompt out." in refusal(road.examples, "--prompt", tmp_path / "mine.toml")


def test_a_build_from_before_there_were_layouts_is_resumed(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "examples"
    shutil.copytree(road.examples, out)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["config"]["layout"]
    assert manifest["config"]["targets"] == "cumulative"
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    steper("build", "--rollout", road.rollout, "--out", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
