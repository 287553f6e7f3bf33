"""Bad input: one paragraph that names place and remedy, and nothing half-written.

That such an error ends the program with exit code 2 and without a traceback is tested in
``tests/unit/test_cli.py``; here the command line is run in this process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from road import Road
from steper.cli import run
from steper.errors import SteperError

QUESTION = {"id": "q1", "question": "Who?", "answer": "A"}


def refused(*arguments: object) -> str:
    """Run a command that must be refused; returns its message."""
    with pytest.raises(SteperError) as caught:
        run([str(argument) for argument in arguments])
    return str(caught.value)


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


BAD_QUESTIONS: dict[str, tuple[list[object], str]] = {
    "malformed": ([QUESTION, "{"], "q.jsonl:2: "),
    "wrong field": ([{**QUESTION, "anser": "A"}], "q.jsonl:1: anser: unknown field."),
    "wrong type": ([{**QUESTION, "hops": "two"}], "q.jsonl:1: hops: "),
    "no answer": ([{**QUESTION, "answer": ""}], "a question without answer"),
    "duplicate": ([QUESTION, QUESTION], "a second question with id 'q1'"),
    "empty": ([], "holds no questions"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_questions(road: Road, tmp_path: Path, case: str) -> None:
    lines, expected = BAD_QUESTIONS[case]
    questions = write(tmp_path / "q.jsonl", *lines)
    out = tmp_path / "run"
    message = refused(
        "rollout",
        "--index",
        road.index,
        "--questions",
        questions,
        "--out",
        out,
        "--teacher",
        "world",
    )
    assert expected in message and "q.jsonl" in message
    assert not out.exists()


def test_questions_without_a_chain(road: Road, tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTION)
    message = refused(
        "rollout", "--index", road.index, "--questions", questions, "--out", tmp_path / "run"
    )
    assert "gold chain" in message and "--teacher" in message
    assert not (tmp_path / "run").exists()


CORPORA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "nowhere.jsonl", "no such file or folder"),
    "empty": (lambda folder: write(folder / "c.jsonl"), "holds no passages"),
    "malformed": (lambda folder: write(folder / "c.jsonl", "[1]"), "c.jsonl:1"),
    "wrong field": (
        lambda folder: write(folder / "c.jsonl", {"id": "a", "body": "Some words."}),
        "--fields text COLUMN",
    ),
    "without words": (
        lambda folder: write(folder / "c.jsonl", {"id": "a", "text": "?!"}),
        "no passage holds a word",
    ),
}


@pytest.mark.parametrize("case", CORPORA)
def test_corpus(tmp_path: Path, case: str) -> None:
    make, expected = CORPORA[case]
    out = tmp_path / "index"
    assert expected in refused("index", make(tmp_path), "--out", out)
    assert not (out / "info.json").exists()
    message = refused("recall", "--index", out, "--questions", write(tmp_path / "q", QUESTION))
    assert "is not finished" in message or "no info.json" in message


def test_a_student_is_asked_only_as_it_was_taught(road: Road, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "steper.json").write_bytes((road.examples / "setting.json").read_bytes())
    common = ("evaluate", "--model", student, "--index", road.index, "--questions", road.questions)
    message = refused(*common, "--out", tmp_path / "e", "--strategy", "single-step")
    assert "was taught with strategy = 'ircot', not 'single-step'" in message
    assert "k = 2, not 3" in refused(*common, "--out", tmp_path / "e", "--k", 3)
    assert not (tmp_path / "e").exists()


def test_a_setting_of_another_kind_is_refused(road: Road, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    setting = json.loads((road.examples / "setting.json").read_text())
    setting["strategy"] = "self-ask-of-the-future"
    write(student / "steper.json", setting)
    message = refused(
        "evaluate", "--model", student, "--index", road.index, "--questions", road.questions,
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert "steper.json: strategy" in message


def test_stages_in_the_wrong_order(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "of `steper index`, not of `steper rollout`" in refused(
        "build", "--rollout", road.index, "--out", out
    )
    assert "of `steper rollout`, not of `steper build`" in refused(
        "train", "--data", road.rollout, "--base", road.model, "--out", out
    )
    assert not out.exists()


def test_another_run_in_the_folder(road: Road, tmp_path: Path) -> None:
    message = refused(
        "rollout", "--index", road.index, "--questions", road.questions, "--teacher", "world",
        "--prompt", "world", "--k", 3, "--max-steps", 6, "--out", road.rollout,
    )  # fmt: skip
    assert "config.k: 2 there, 3 now" in message


def test_no_trajectory_left(road: Road, tmp_path: Path) -> None:
    questions = write(
        tmp_path / "q.jsonl",
        {**QUESTION, "chain": [{"question": "director", "answer": "A", "title": "No One"}]},
    )
    rolled = tmp_path / "rollout"
    code = run([str(a) for a in (
        "rollout", "--index", road.index, "--questions", questions, "--teacher", "world",
        "--out", rolled,
    )])  # fmt: skip
    assert code == 0
    message = refused("build", "--rollout", rolled, "--out", tmp_path / "examples")
    assert "none of 1 trajectories passed" in message
    assert not (tmp_path / "examples" / "examples.jsonl").exists()


def test_a_model_that_is_none(road: Road, tmp_path: Path) -> None:
    message = refused("ask", "Who?", "--model", tmp_path, "--index", road.index)
    assert "no causal language model could be loaded" in message


def test_a_torn_trajectory_line_is_dropped_and_redone(road: Road, tmp_path: Path) -> None:
    out = tmp_path / "rollout"
    command = [str(argument) for argument in (
        "rollout", "--index", road.index, "--questions", road.questions, "--teacher", "world",
        "--prompt", "world", "--k", 2, "--max-steps", 6, "--out", out,
    )]  # fmt: skip
    assert run(command) == 0
    whole = (out / "trajectories.jsonl").read_bytes()
    assert whole == (road.rollout / "trajectories.jsonl").read_bytes()
    (out / "trajectories.jsonl").write_bytes(whole[: len(whole) // 2])
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    assert run(command) == 0
    assert (out / "trajectories.jsonl").read_bytes() == whole
