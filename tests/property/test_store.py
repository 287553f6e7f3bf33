"""Records survive the round trip; a log killed at any byte ends as a clean one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from steper.store import Log, from_json, to_json
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


@given(st.one_of(trajectories, examples, questions, passages))
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
            if record.id not in resumed.records:
                resumed.append(record)
        resumed.finish()
        assert path.read_bytes() == clean.path.read_bytes()
