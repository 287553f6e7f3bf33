"""Reading questions, passages and chains: every accepted format, and every refusal."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steper.chains import decomposition_chain, triple_chain
from steper.datasets import load_chains, load_questions, question_passages, with_chains
from steper.errors import SteperError
from steper.store import write_records
from steper.types import Hop, Question

PLAIN = {"id": "q1", "question": "Who hosted Hee Haw?", "answer": "Roy Clark"}

HOTPOT: dict[str, Any] = {
    "_id": "5a8b",
    "question": "Jim Halsey guided the career of the host of what show?",
    "answer": "Hee Haw",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Roy Clark", 0], ["Roy Clark", 1], ["Jim Halsey", 0]],
    "context": [
        ["Jim Halsey", ["Jim Halsey managed Roy Clark.", " He lives in Tulsa."]],
        ["Roy Clark", ["Roy Clark sang.", " He hosted Hee Haw."]],
        ["Empty", []],
    ],
}

TWOWIKI: dict[str, Any] = {
    "_id": "8813",
    "type": "compositional",
    "question": "Who is the mother of the director of Polish-Russian War (Film)?",
    "context": [
        ["Polish-Russian War (film)", ["It is a 2009 film.", "Xawery directed it."]],
        ["Xawery Żuławski", ["His mother is Małgorzata Braunek."]],
    ],
    "supporting_facts": [["Polish-Russian War (film)", 1], ["Xawery Żuławski", 0]],
    "evidences": [
        ["Polish-Russian War", "director", "Xawery Żuławski"],
        ["Xawery Żuławski", "mother", "Małgorzata Braunek"],
    ],
    "evidences_id": [["Q3569599", "director", "Q3570840"], ["Q3570840", "mother", "Q274277"]],
    "answer": "Małgorzata Braunek",
    "answer_id": "Q274277",
    "entity_ids": "Q3569599_Q3570840",
}

MUSIQUE: dict[str, Any] = {
    "id": "2hop__460946_294723",
    "paragraphs": [
        {"idx": 0, "title": "Noise", "paragraph_text": "Noise is sound.", "is_supporting": False},
        {"idx": 5, "title": "Miquette", "paragraph_text": "A singer.", "is_supporting": True},
        {"idx": 10, "title": "Green", "paragraph_text": "An album.", "is_supporting": True},
    ],
    "question": "Who is the spouse of the Green performer?",
    "question_decomposition": [
        {
            "id": 460946,
            "question": "Green >> performer",
            "answer": "Steve Hillage",
            "paragraph_support_idx": 10,
        },
        {
            "id": 294723,
            "question": "Who is the spouse of #1 ?",
            "answer": "Miquette Giraudy",
            "paragraph_support_idx": 5,
        },
    ],
    "answer": "Miquette Giraudy",
    "answer_aliases": ["Giraudy", "Miquette Giraudy"],
    "answerable": True,
}

Write = Callable[..., Path]


@pytest.fixture
def lines(tmp_path: Path) -> Write:
    """Write records as JSONL."""

    def write(*records: Any, name: str = "questions.jsonl") -> Path:
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
        return tmp_path / name

    return write


@pytest.fixture
def array(tmp_path: Path) -> Write:
    """Write records as one JSON array, as HotpotQA and 2WikiMultiHopQA are released."""

    def write(
        *records: Any, name: str = "hotpot_dev_distractor_v1.json", indent: Any = None
    ) -> Path:
        (tmp_path / name).write_text(json.dumps(records, indent=indent))
        return tmp_path / name

    return write


# ---- our own format --------------------------------------------------------------------------


def test_three_fields_are_enough(lines: Write) -> None:
    assert load_questions(lines(PLAIN)) == [Question("q1", "Who hosted Hee Haw?", "Roy Clark")]


def test_written_questions_read_back_equal(tmp_path: Path) -> None:
    question = Question(
        "q1",
        "Who?",
        "Ré",
        answer_aliases=("Re",),
        type="bridge",
        hops=2,
        supporting_titles=("A", "B"),
        supporting_ids=("1", "2"),
        chain=(Hop("Who?", "A", "B", "A is B."),),
        split="train",
    )
    write_records(tmp_path / "q.jsonl", [question])
    assert load_questions(tmp_path / "q.jsonl") == [question]


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    text = json.dumps(PLAIN) + "\r\n\r\n" + json.dumps(PLAIN | {"id": "q2"}) + "\r\n"
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [q.id for q in load_questions(tmp_path / "q.jsonl")] == ["q1", "q2"]


def test_split_and_limit(lines: Write) -> None:
    path = lines(*(PLAIN | {"id": str(n), "split": "dev" if n % 2 else "train"} for n in range(6)))
    assert [q.id for q in load_questions(path, split="dev", limit=2)] == ["1", "3"]


def test_limit_leaves_the_rest_of_the_file_alone(lines: Write) -> None:
    assert len(load_questions(lines(PLAIN, {"broken": 1}), limit=1)) == 1


def test_decomposition_becomes_the_chain(lines: Write) -> None:
    parts = [
        {"question": "Which province borders Zhejiang?", "answer": "Fujian", "title": "Zhejiang"},
        {"question": "Who led the expedition in #1 ?", "answer": "Chen Zheng", "title": "Hokkien"},
    ]
    (question,) = load_questions(lines(PLAIN | {"decomposition": parts, "gold_how": "title"}))
    assert question.hops == 2
    assert question.chain[1] == Hop(
        "Who led the expedition in Fujian?",
        "Chen Zheng",
        "Hokkien",
        "Who led the expedition in Fujian? Chen Zheng.",
    )


def test_triples_come_before_a_decomposition(lines: Write) -> None:
    extra = {
        "supporting_titles": ["Karl"],
        "evidence_triples": [["Karl", "father", "Emich"]],
        "decomposition": [{"question": "Who?", "answer": "Karl's father is Emich."}],
        "evidence": [{"title": "Karl", "sent_id": 0, "sentence": None}],
        "answer_id": "Q1",
    }
    (question,) = load_questions(lines(PLAIN | extra))
    assert question.chain == (
        Hop("father of Karl", "Emich", "Karl", "The father of Karl is Emich."),
    )


def test_parquet_reads_as_jsonl_does(tmp_path: Path, lines: Write) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [
        PLAIN | {"answer_aliases": ["Clark"], "hops": 2, "type": None},
        PLAIN | {"id": "q2", "chain": [{"question": "a", "answer": "b", "title": "c"}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(pa)), tmp_path / "q.parquet")
    without_nulls = [{k: v for k, v in row.items() if v is not None} for row in rows]
    assert load_questions(tmp_path / "q.parquet") == load_questions(lines(*without_nulls))


def _schema(pa: Any) -> Any:
    hop = pa.struct([(name, pa.string()) for name in ("question", "answer", "title")])
    texts = [(name, pa.string()) for name in ("id", "question", "answer", "type")]
    lists = [("answer_aliases", pa.list_(pa.string())), ("chain", pa.list_(hop))]
    return pa.schema([*texts, *lists, ("hops", pa.int64())])


# ---- official release files ------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 4])
def test_hotpotqa(array: Write, indent: int | None) -> None:
    path = array(HOTPOT, indent=indent)
    (question,) = load_questions(path)
    ids = {passage.title: passage.id for passage in question_passages(path)}
    assert question == Question(
        id="5a8b",
        question=HOTPOT["question"],
        answer="Hee Haw",
        type="bridge",
        hops=2,
        supporting_titles=("Roy Clark", "Jim Halsey"),
        supporting_ids=(ids["Roy Clark"], ids["Jim Halsey"]),
        split="dev",
    )


def test_hotpotqa_gold_passage_outside_the_context_has_no_id(array: Write) -> None:
    (question,) = load_questions(array(HOTPOT | {"context": HOTPOT["context"][:1]}))
    assert question.supporting_titles == ("Roy Clark", "Jim Halsey")
    assert len(question.supporting_ids) == 1


def test_2wikimultihopqa(array: Write) -> None:
    (question,) = load_questions(array(TWOWIKI, name="train.json"))
    assert (question.split, question.type, question.hops) == ("train", "compositional", 2)
    assert question.answer_aliases == ()
    assert question.chain == (
        Hop(
            "director of Polish-Russian War",
            "Xawery Żuławski",
            "Polish-Russian War (film)",
            "The director of Polish-Russian War is Xawery Żuławski.",
        ),
        Hop(
            "mother of Xawery Żuławski",
            "Małgorzata Braunek",
            "Xawery Żuławski",
            "The mother of Xawery Żuławski is Małgorzata Braunek.",
        ),
    )


def test_2wikimultihopqa_counts_triples_not_passages_as_hops(array: Write) -> None:
    more = {"evidences": [*TWOWIKI["evidences"], ["Xawery Żuławski", "father", "Andrzej"]]}
    (question,) = load_questions(array(TWOWIKI | more, name="dev.json"))
    assert question.hops == len(question.chain) == 3
    assert question.chain[2].title == "Xawery Żuławski"


def test_2wikimultihopqa_aliases_are_read_from_the_file_beside(array: Write, lines: Write) -> None:
    names = ["M. Braunek", "Małgorzata Braunek", "M. Braunek"]
    entity = {"Q_id": "Q274277", "aliases": names, "demonyms": ["Pole"]}
    lines(entity, {"Q_id": "Q1", "aliases": ["other"], "demonyms": []}, name="id_aliases.json")
    (question,) = load_questions(array(TWOWIKI, name="dev.json"))
    assert question.answer_aliases == ("M. Braunek", "Pole")


def test_musique(lines: Write) -> None:
    path = lines(MUSIQUE, name="musique_ans_v1.0_train.jsonl")
    (question,) = load_questions(path)
    ids = {passage.title: passage.id for passage in question_passages(path)}
    assert question == Question(
        id="2hop__460946_294723",
        question=MUSIQUE["question"],
        answer="Miquette Giraudy",
        answer_aliases=("Giraudy",),
        type="2hop",
        hops=2,
        supporting_titles=("Green", "Miquette"),
        supporting_ids=(ids["Green"], ids["Miquette"]),
        chain=(
            Hop(
                "Green >> performer",
                "Steve Hillage",
                "Green",
                "The performer of Green is Steve Hillage.",
            ),
            Hop(
                "Who is the spouse of Steve Hillage?",
                "Miquette Giraudy",
                "Miquette",
                "Who is the spouse of Steve Hillage? Miquette Giraudy.",
            ),
        ),
        split="train",
    )


def test_musique_gold_passages_without_a_decomposition(lines: Write) -> None:
    record = {k: v for k, v in MUSIQUE.items() if k != "question_decomposition"}
    (question,) = load_questions(lines({**record, "question_decomposition": []}))
    assert question.supporting_titles == ("Miquette", "Green")
    assert (question.chain, question.hops) == ((), 0)


def test_musique_full_leaves_the_unanswerable_twin_out_and_says_so(
    lines: Write, caplog: pytest.LogCaptureFixture
) -> None:
    hops = [hop | {"paragraph_support_idx": None} for hop in MUSIQUE["question_decomposition"]]
    twin = MUSIQUE | {"answerable": False, "question_decomposition": hops}
    path = lines(twin, MUSIQUE, name="musique_full_v1.0_dev.jsonl")
    with caplog.at_level(logging.WARNING):
        assert [q.answer for q in load_questions(path)] == ["Miquette Giraudy"]
    assert "left out 1 unanswerable" in caplog.text


# ---- passages --------------------------------------------------------------------------------


def test_passages_come_once_with_stable_ids(array: Write) -> None:
    other = HOTPOT | {
        "_id": "2",
        "context": [["Roy Clark", ["Roy Clark sang.", "He hosted Hee Haw."]]],
    }
    changed = HOTPOT | {"_id": "3", "context": [["Roy Clark", ["Another text."]]]}
    passages = question_passages(array(HOTPOT, other, changed))
    assert [(p.title, p.text) for p in passages] == [
        ("Jim Halsey", "Jim Halsey managed Roy Clark. He lives in Tulsa."),
        ("Roy Clark", "Roy Clark sang. He hosted Hee Haw."),
        ("Roy Clark", "Another text."),
    ]
    # The first 16 hex digits of SHA-256 over title, newline, text: pinned, since corpora keep them.
    assert passages[2].id == "79004a336b8f59d1"
    assert len({p.id for p in passages}) == 3


def test_a_test_file_without_answers_still_gives_its_passages(lines: Write) -> None:
    paragraphs = [
        {k: p[k] for k in ("idx", "title", "paragraph_text")} for p in MUSIQUE["paragraphs"]
    ]
    record = {"id": "2hop__1_2", "question": "Who?", "paragraphs": paragraphs}
    path = lines(record, name="musique_ans_v1.0_test.jsonl")
    assert len(question_passages(path)) == 3
    with pytest.raises(SteperError, match="a question without answer"):
        load_questions(path)


def test_a_file_of_plain_questions_holds_no_passages(lines: Write) -> None:
    with pytest.raises(SteperError, match=r"questions\.jsonl: holds no passages\."):
        question_passages(lines(PLAIN))


# ---- chains ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("Zhejiang >> capital", "Hangzhou", "The capital of Zhejiang is Hangzhou."),
        ("Zhejiang >> shares border with", "Fujian", "Zhejiang shares border with Fujian."),
        ("ESN >> owned by", "Adelphia", "ESN is owned by Adelphia."),
        (
            "Westcarr >> member of sports team",
            "Forest",
            "Westcarr is member of sports team Forest.",
        ),
        ("Green Ice >> cast member", "Ryan O'Neal", "The cast member of Green Ice is Ryan O'Neal."),
        ("when did it end ?", "in the U.S.", "When did it end? in the U.S."),
        ("the population was", "5", "The population was? 5."),
        (">> performer", "X", ">> performer? X."),
    ],
)
def test_statement_of_a_sub_question(question: str, answer: str, statement: str) -> None:
    assert decomposition_chain([(question, answer, "")])[0].statement == statement


def test_only_earlier_hops_are_references() -> None:
    chain = decomposition_chain(
        [
            ("Which #1 hit ?", "Green", ""),
            ("#1 's label", "Virgin", ""),
            ("#2 or #12 or #0", "x", ""),
        ]
    )
    assert [hop.question for hop in chain] == [
        "Which #1 hit?",
        "Green's label",
        "Virgin or #12 or #0",
    ]


def test_title_of_a_triple() -> None:
    triples = [("GREEN", "performer", "Hillage"), ("S. Hillage", "spouse", "Miquette")]
    titles = ["Green (album)", "Steve Hillage"]
    assert [hop.title for hop in triple_chain(triples, titles)] == titles
    # In another order the name still decides; where it says nothing and the counts differ, nothing.
    assert [hop.title for hop in triple_chain(triples[:1], titles[::-1])] == ["Green (album)"]
    assert [hop.title for hop in triple_chain(triples[1:], titles)] == [""]
    assert triple_chain(triples[:1], ["Green (song)", "Green"])[0].title == "Green"
    # Two titles that differ in the parenthesis only do not say which.
    assert triple_chain(triples[:1], ["Green (album)", "Green (song)"])[0].title == ""


def test_human_chains_replace_a_questions_own(lines: Write) -> None:
    steps = [
        {
            "titles": ["Roy Clark"],
            "sentence": " Roy Clark hosted  Hee Haw.",
            "text_substrings": ["x"],
        },
        {"titles": [], "sentence": "Thus it is Hee Haw.", "text_substrings": []},
        {"titles": [], "sentence": "So the answer is: Hee Haw.", "text_substrings": []},
    ]
    chains = load_chains(lines({"dataset": "hotpotqa", "id": "q1", "steps": steps}))
    written = (
        Hop("", "", "Roy Clark", "Roy Clark hosted Hee Haw."),
        Hop("", "", "", "Thus it is Hee Haw."),
    )
    assert chains == {("hotpotqa", "q1"): written}
    one, two = Question("q1", "Who?", "a"), Question("q2", "Who?", "a", chain=(Hop("", "", ""),))
    assert [q.chain for q in with_chains([one, two], chains)] == [written, two.chain]
    assert with_chains([one, two], chains, dataset="musique") == [one, two]


# ---- refusals --------------------------------------------------------------------------------


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(SteperError) as caught:
        load_questions(path, **options)
    assert caught.value.where, "an error must say where"
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": "q2", "question": "Who?"}, ":2: answer: a question without answer (id 'q2')."),
        (PLAIN | {"id": "q2", "answer": " "}, ":2: answer: a question without answer (id 'q2')."),
        (PLAIN, ":2: id: a second question with id 'q1'; the first is at "),
        (PLAIN | {"id": ""}, ":2: id: is empty."),
        (PLAIN | {"id": "q2", "question": " "}, ":2: question: is empty."),
        ({"id": "q2", "answer": "x"}, ":2: question: required field is missing."),
        (PLAIN | {"id": 7}, ":2: id: Input should be a valid string."),
        (PLAIN | {"answr": "x"}, ":2: answr: unknown field."),
        (PLAIN | {"hops": "2"}, ":2: hops: Input should be a valid integer."),
        (PLAIN | {"evidence_triples": [["a", "b"]]}, ":2: evidence_triples.0.2: required field"),
        (PLAIN | {"decomposition": [{"question": "x"}]}, ":2: decomposition.0.answer: required"),
        ([1], ":2: "),
    ],
)
def test_a_bad_line_is_refused_with_its_place(lines: Write, second: Any, message: str) -> None:
    assert refused(lines(PLAIN, second)).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": holds no questions."),
        (b"\xef\xbb\xbf\n", ": holds no questions."),
        (b"[]", ": holds no questions."),
        (b'{"id": "q1",\n', ":1: Invalid JSON"),
        (b"no json\n", ":1: Invalid JSON"),
        (b'{"id": "\xff"}\n', ":1: Invalid JSON"),
        (b"\xff\xfe{\x00", ": is not UTF-8 text."),
        (b'["\xff"]', ": is not UTF-8 text"),
        (gzip.compress(b"{}"), ": is a compressed archive. Unpack it first."),
        (b"PAR1 but no more", ": is not a readable Parquet file"),
        (b"[\n{}\n{}]", ":2: record 1: "),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    assert refused(path).startswith(message)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("\n{}]", ":2: not JSON: expected a comma or the end of the list."),
        (",\n\n{]", ":3: not JSON: "),
        (",\n", ":2: not JSON: "),
        ("", ":1: not JSON: "),
        ("]\n x", ":2: not JSON: more after the end of the list."),
    ],
)
def test_a_torn_array_is_refused_with_its_line(tmp_path: Path, tail: str, message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text("[" + json.dumps(HOTPOT) + tail)
    assert refused(path).startswith(message)


def test_a_bad_record_of_an_array_is_refused_with_line_and_number(array: Write) -> None:
    path = array(HOTPOT, HOTPOT | {"_id": "2", "answer": None})
    assert refused(path).startswith(":1: record 2: answer: a question without answer (id '2').")
    path = array(HOTPOT, HOTPOT | {"_id": 2}, indent=1)
    second = path.read_text().splitlines().index(" },") + 2
    assert refused(path).startswith(f":{second}: record 2: _id: Input should be a valid string.")
    path = array(HOTPOT, {k: v for k, v in HOTPOT.items() if k != "context"})
    assert refused(path).startswith(":1: record 2: context: required field is missing.")
    assert "extra: unknown field" in refused(array(HOTPOT | {"extra": 1}))


def test_parquet_values_that_are_no_json_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_pylist([PLAIN | {"answer": b"bytes"}]), path)
    assert refused(path).startswith(": row 1: a value of type bytes cannot be read.")
    pq.write_table(pa.Table.from_pylist([PLAIN, PLAIN | {"id": "q2", "answer": None}]), path)
    assert refused(path).startswith(": row 2: answer: a question without answer")


def test_a_missing_file_a_folder_and_a_bad_limit_are_refused(tmp_path: Path, lines: Write) -> None:
    assert refused(tmp_path / "none.jsonl") == ": no such file. Check the path."
    assert refused(tmp_path) == ": is a folder, not a file."
    assert "at least 1" in refused(lines(PLAIN), limit=0)


def test_a_split_that_is_not_there_is_refused_with_what_is(lines: Write) -> None:
    path = lines(PLAIN | {"split": "dev"}, PLAIN | {"id": "q2", "split": "dev"})
    assert refused(path, split="train") == (
        ": holds no questions of split 'train' (2 of split 'dev' left out). "
        "Check the file and the split."
    )


def test_only_unanswerable_questions_are_refused_with_their_number(lines: Write) -> None:
    message = refused(lines(MUSIQUE | {"answerable": False}))
    assert message.startswith(": holds no questions (1 unanswerable left out).")


def test_bad_alias_and_chain_files_are_refused(array: Write, lines: Write) -> None:
    lines({"aliases": []}, name="id_aliases.json")
    with pytest.raises(SteperError, match=r"id_aliases\.json:1: Q_id: required field"):
        load_questions(array(TWOWIKI))
    chain = {"dataset": "hotpotqa", "id": "q1", "steps": []}
    with pytest.raises(SteperError, match=r":2: id: a second chain for hotpotqa question 'q1'"):
        load_chains(lines(chain, chain))
    with pytest.raises(SteperError, match=r":1: steps\.0\.sentence: required field"):
        load_chains(lines(chain | {"steps": [{"titles": []}]}))
    with pytest.raises(SteperError, match="holds no chains"):
        load_chains(lines())


# ---- real data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "dev", "chains"),
    [("hotpotqa", 792, 563, 0), ("2wikimultihopqa", 835, 315, 815), ("musique", 887, 767, 867)],
)
def test_real_questions(shared_data: Path, name: str, count: int, dev: int, chains: int) -> None:
    path = shared_data / name / "questions.jsonl"
    questions = load_questions(path)
    assert len(questions) == count
    assert len(load_questions(path, split="dev")) == dev
    assert sum(bool(q.chain) for q in questions) == chains
    for question in questions:
        assert {hop.title for hop in question.chain} <= set(question.supporting_titles)
        assert all(hop.statement.endswith(".") for hop in question.chain)


def test_real_human_chains(shared_data: Path) -> None:
    chains = load_chains(shared_data / "human_chains.jsonl")
    questions = load_questions(shared_data / "hotpotqa" / "questions.jsonl")
    chained = [q for q in with_chains(questions, chains, dataset="hotpotqa") if q.chain]
    assert (len(chains), len(chained)) == (69, 29)
    assert not any("answer is" in hop.statement for q in chained for hop in q.chain)
