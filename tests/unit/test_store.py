"""Run folders: strict records, whole files, resumed logs, foreign folders refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steper.errors import SteperError
from steper.store import (
    Run,
    from_json,
    read_json,
    read_records,
    require_finished,
    sha256,
    to_json,
    write_atomic,
)
from steper.types import Passage, Question, Step, Trajectory

RUN = Trajectory(
    Question("q", "Who?", "A"),
    (Step("x", (Passage("p", "T", "text"),), "So the answer is: A."),),
    "A",
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("answer"), "t.jsonl:1: answer: required field is missing"),
        (lambda d: d.update(extra=1), "t.jsonl:1: extra: unknown field"),
        (lambda d: d["question"].update(hops="2"), "t.jsonl:1: question.hops: "),
        (lambda d: d["steps"][0].pop("query"), "t.jsonl:1: steps.0.query: required"),
        (lambda d: d.update(stopped="tired"), "t.jsonl:1: stopped: "),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, change: object, message: str) -> None:
    data = json.loads(to_json(RUN))
    change(data)  # type: ignore[operator]
    (tmp_path / "t.jsonl").write_text(json.dumps(data) + "\n")
    with pytest.raises(SteperError) as caught:
        read_records(tmp_path / "t.jsonl", Trajectory)
    assert message in str(caught.value)


def test_other_things_that_are_no_records() -> None:
    for text in ("", "[]", "null", "{"):
        with pytest.raises(SteperError, match=r"^f:1: "):
            from_json(Trajectory, text, where="f:1")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no such file"):
        read_records(tmp_path / "none.jsonl", Passage)
    with pytest.raises(SteperError, match="is a folder"):
        read_records(tmp_path, Passage)
    (tmp_path / "x.json").write_text("{\n  no")
    with pytest.raises(SteperError, match=r"x\.json:2"):
        read_json(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def start(folder: Path, **changes: object) -> Run:
    settings: dict[str, object] = {"stage": "rollout", "config": {"k": 4}, "inputs": {}}
    return Run.open(folder, **(settings | changes))  # type: ignore[arg-type]


def test_the_same_run_is_resumed_until_it_is_finished(tmp_path: Path) -> None:
    assert not start(tmp_path / "run").finished
    run = start(tmp_path / "run")
    run.finish({"n": 3})
    again = start(tmp_path / "run")
    assert again.finished and again.counts == {"n": 3}


def test_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("one")
    inputs = {"corpus": tmp_path / "input"}
    start(tmp_path / "run", inputs=inputs)
    with pytest.raises(SteperError, match=r"config\.k: 4 there, 5 now"):
        start(tmp_path / "run", config={"k": 5}, inputs=inputs)
    with pytest.raises(SteperError, match="stage: 'rollout' there, 'build' now"):
        start(tmp_path / "run", stage="build", inputs=inputs)
    (tmp_path / "input").write_text("two")
    with pytest.raises(SteperError, match=r"input\.corpus"):
        start(tmp_path / "run", inputs=inputs)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SteperError, match="not a run of steper"):
        start(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missing_input_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="the corpus does not exist"):
        start(tmp_path / "run", inputs={"corpus": tmp_path / "none"})
    assert not (tmp_path / "run").exists()


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from steper.store import Run;"
        "run = Run.open(Path(sys.argv[1]), stage='rollout', config={'k': 4}, inputs={});"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout and other.stdin
        assert other.stdout.readline() == "open\n"
        with pytest.raises(SteperError, match="another process"):
            start(tmp_path / "run")
        other.stdin.close()
        other.wait(timeout=30)
    start(tmp_path / "run")


def test_what_is_unfinished_or_of_another_stage_is_not_read_from(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    with pytest.raises(SteperError, match="has not finished"):
        require_finished(tmp_path / "run", stage="rollout")
    run.finish({})
    with pytest.raises(SteperError, match="of `steper rollout`, not of `steper build`"):
        require_finished(tmp_path / "run", stage="build")
    assert require_finished(tmp_path / "run", stage="rollout")["counts"] == {}


def test_the_hash_of_a_folder_depends_on_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    one = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256(tmp_path) != one
    (tmp_path / "b").rename(tmp_path / "a")
    assert sha256(tmp_path) == one
