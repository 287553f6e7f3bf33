"""Records survive the round trip; a log killed at any byte ends as a clean one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steper.errors import SteperError
from steper.store import Log, from_json, read_records, to_json, write_records
from steper.types import Hop, Passage, Question, Step, StepExample, Trajectory

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
passages = st.builds(Passage, id=texts, title=texts, text=texts)
hops = st.builds(Hop, question=texts, answer=texts, title=texts, statement=texts)
questions = st.builds(
    Question,
    id=texts,
    question=texts,
    answer=texts,
    answer_aliases=st.lists(texts, max_size=2).map(tuple),
    chain=st.lists(hops, max_size=2).map(tuple),
    hops=st.integers(0, 5),
)
steps = st.builds(
    Step, query=texts, passages=st.lists(passages, max_size=2).map(tuple), reasoning=texts
)
trajectories = st.builds(
    Trajectory,
    question=questions,
    steps=st.lists(steps, max_size=3).map(tuple),
    answer=texts,
    stopped=st.sampled_from(["answer", "limit"]),
)
examples = st.builds(
    StepExample,
    id=texts,
    trajectory_id=texts,
    task=st.sampled_from(["initialization", "expansion", "aggregation"]),
    step=st.integers(1, 5),
    prompt=texts,
    target=texts,
)


ODD = '\u2028\u2029\x85\n\r\x0b\x0c\x1c\x00\ufeff\U0001f3b8"\\'


@given(st.one_of(trajectories, examples, questions, passages))
@example(Passage(ODD, ODD, ODD))
@example(Question(ODD, ODD, ODD, answer_aliases=(ODD, ""), chain=(Hop(ODD, ODD, ODD, ODD),)))
@example(StepExample(ODD, ODD, "expansion", 2, ODD, ODD))
def test_round_trip(record: object) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert from_json(type(record), line, where="x") == record


@settings(max_examples=60, deadline=None)
@given(st.lists(passages, min_size=1, max_size=5, unique_by=lambda p: p.id), st.data())
def test_a_log_killed_at_any_byte_ends_as_a_clean_one(
    records: list[Passage], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clean = Log(Path(folder) / "clean.jsonl", Passage, key=lambda p: p.id)
        for record in records:
            clean.append(record)
        whole = clean.path.read_bytes()
        clean.finish()

        path = Path(folder) / "killed.jsonl"
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
        resumed = Log(path, Passage, key=lambda p: p.id)
        for record in records:
            if record.id not in resumed:
                resumed.append(record)
        resumed.finish()
        assert path.read_bytes() == clean.path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(trajectories, max_size=4))
def test_a_file_holds_one_record_a_line(records: list[Trajectory]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        write_records(path, records)
        assert read_records(path, Trajectory) == records
        assert path.read_bytes().count(b"\n") == len(records)


@given(trajectories, st.data())
def test_a_field_more_or_less_is_refused_by_name(record: Trajectory, data: st.DataObject) -> None:
    fields = json.loads(to_json(record))
    name = data.draw(st.sampled_from(sorted(fields)))
    more, less = fields | {"surprise": 1}, {k: v for k, v in fields.items() if k != name}
    with pytest.raises(SteperError, match=r"^f\.jsonl:3: surprise: unknown field"):
        from_json(Trajectory, json.dumps(more), where="f.jsonl:3")
    if name not in ("stopped", "sample"):  # they have a default
        with pytest.raises(SteperError, match=rf"^f\.jsonl:3: {name}: required field is missing"):
            from_json(Trajectory, json.dumps(less), where="f.jsonl:3")
    with pytest.raises(SteperError, match=rf"^f\.jsonl:3: {name}: "):
        from_json(Trajectory, json.dumps(fields | {name: 7.5}), where="f.jsonl:3")
