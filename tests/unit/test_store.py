"""Run folders: strict records, whole files, resumed logs, foreign folders refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from steper.errors import SteperError
from steper.store import (
    Log,
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


def begin(folder: Path, **changes: object) -> None:
    """A run that was stopped after its first result."""
    with start(folder, **changes) as run:
        run.log("results", Passage, key=lambda p: p.id).append(ODD[0])


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
    begin(tmp_path / "run", inputs=inputs)
    with pytest.raises(SteperError, match=r"config\.k: 4 there, 5 now"):
        start(tmp_path / "run", config={"k": 5}, inputs=inputs)
    with pytest.raises(SteperError, match="stage: 'rollout' there, 'build' now"):
        start(tmp_path / "run", stage="build", inputs=inputs)
    (tmp_path / "input").write_text("two")
    with pytest.raises(SteperError, match=r"input\.corpus"):
        start(tmp_path / "run", inputs=inputs)


def test_a_run_that_has_done_nothing_makes_room_for_a_corrected_one(tmp_path: Path) -> None:
    """As after a typo in a model's name."""
    with start(tmp_path / "run"):
        (tmp_path / "run" / "setting.json").write_text("old")
    with start(tmp_path / "run", config={"k": 5}) as run:
        assert not run.finished
    assert read_json(tmp_path / "run" / "manifest.json")["config"] == {"k": 5}
    assert not (tmp_path / "run" / "setting.json").exists()


def test_a_manifest_half_written_by_a_kill_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".manifest.json.123.tmp").write_text("{")
    assert not start(tmp_path / "run").finished


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


ODD = [
    Passage("b", "line\u2028paragraph\u2029next\x85", 'new\nline \r\n tab\t quote" back\\slash'),
    Passage("a", "\U0001f3b8 Ünïcode \ufeff", "\x00\x1f\x7f"),
    Passage("", " ", ""),
]


def test_a_log_killed_at_every_byte_ends_as_a_clean_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of files, none to outlive the test
    clean = Log(tmp_path / "clean.jsonl", Passage, key=lambda p: p.id)
    for record in ODD:
        clean.append(record)
    whole = clean.path.read_bytes()
    clean.finish()
    assert list(clean) == read_records(clean.path, Passage) == sorted(ODD, key=lambda p: p.id)
    finished = clean.path.read_bytes()
    assert finished != whole and sorted(finished.splitlines()) == sorted(whole.splitlines())
    path = tmp_path / "killed.jsonl"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        resumed = Log(path, Passage, key=lambda p: p.id)
        assert list(resumed) == sorted(ODD[: whole[:size].count(b"\n")], key=lambda p: p.id)
        for record in ODD:
            if record.id not in resumed:
                resumed.append(record)
        resumed.finish()
        assert path.read_bytes() == finished, size


def test_a_torn_last_line_is_dropped_from_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(f"{to_json(ODD[0])}\n".encode() + b'{"id": "torn\xe2\x80')
    Log(path, Passage, key=lambda p: p.id).append(ODD[1])
    assert read_records(path, Passage) == ODD[:2]


def test_a_damaged_whole_line_is_named_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{to_json(ODD[0])}\n{{"id": "x", "title": "y"}}\n{to_json(ODD[1])}\n')
    with pytest.raises(SteperError, match=r"log\.jsonl:2: text: required field is missing"):
        Log(path, Passage, key=lambda p: p.id)
    assert len(path.read_bytes().splitlines()) == 3


def test_a_bad_line_deep_in_a_file_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"{to_json(ODD[0])}\n\n{to_json(ODD[1])}\n" + '{"id": 7}\n')
    with pytest.raises(SteperError, match=r"p\.jsonl:4: id: Input should be a valid string"):
        read_records(path, Passage)


def test_a_refused_run_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    start(tmp_path / "run").finish({"n": 3})
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(SteperError):
        start(tmp_path / "run", config={"k": 5})
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_new_or_dropped_option_is_a_difference_too(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    with pytest.raises(SteperError, match=r"config\.seed: None there, 1 now"):
        start(tmp_path / "run", config={"k": 4, "seed": 1})
    with pytest.raises(SteperError, match=r"config\.k: 4 there, None now"):
        start(tmp_path / "run", config={})


def test_a_folder_without_manifest_is_no_earlier_stage(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match=r"not a run folder.*steper index"):
        require_finished(tmp_path, stage="index")


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(SteperError, match="is a file, not a folder"):
        start(tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", "{}", '{"stage": "rollout", "config": null}', "\xff"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SteperError, match=r"manifest\.json"):
        start(tmp_path / "run")
