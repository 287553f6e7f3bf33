"""The trajectory browser without a browser: index, choices, pages, joins, replies, the file."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import tracemalloc
import webbrowser
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steper.build import Rejected
from steper.errors import SteperError
from steper.judge import Rating, Verdict
from steper.store import Run, to_json, write_json, write_records
from steper.trajectories import Server, browse, render, respond
from steper.trajectories.views import PAGE_ROWS, Runs
from steper.types import Failure, Passage, Question, Step, Trajectory

HOSTILE = '</script><script>document.title="owned"</script><!--<img src=x onerror=alert(1)>'


def trajectory(
    id_: str,
    answer: str = "Seoul",
    *,
    gold: str = "Seoul",
    type_: str = "2hop",
    steps: int = 2,
    sample: int = 0,
    text: str = "Fine.",
) -> Trajectory:
    question = Question(id_, f"Where is {id_}? {text}", gold, type=type_)
    step = Step("query", (Passage("p", f"Title {text}", text),), f"It is in {answer}.")
    return Trajectory(question, (step,) * steps, answer, sample=sample)


def run_folder(
    folder: Path,
    trajectories: Sequence[Trajectory],
    *,
    stage: str = "rollout",
    finished: bool = True,
    failed: Sequence[Failure] = (),
) -> Path:
    run = Run.open(folder, stage=stage, config={}, inputs={})
    write_records(folder / "trajectories.jsonl", trajectories)
    if failed:
        write_records(folder / "failed.jsonl", failed)
    if finished:
        run.finish({})
    return folder


def build_folder(folder: Path, rollout: Path, rejected: Sequence[Rejected]) -> Path:
    run = Run.open(
        folder, stage="build", config={}, inputs={"trajectories": rollout / "trajectories.jsonl"}
    )
    write_records(folder / "rejected.jsonl", rejected)
    run.finish({})
    return folder


def ids(page: dict[str, Any]) -> list[str]:
    return [row["id"] for row in page["rows"]]


def counts(page: dict[str, Any], name: str) -> dict[str, int]:
    found: dict[str, int] = page["facets"][name]["counts"]
    return found


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Right, wrong, silent and failed ones of two types."""
    ended = [
        trajectory("a", steps=2),
        trajectory("b", "Busan", steps=3),
        trajectory("c", " ", type_="comparison", steps=5),
        trajectory("d", "the Seoul!", type_="comparison", steps=10),
    ]
    failure = Failure("e", Question("e", "Where is e?", "Seoul", type="2hop"), 0, 3, "too long")
    return run_folder(tmp_path / "mixed", ended, failed=[failure])


# ---- choices and pages -----------------------------------------------------------------------


def test_each_outcome_is_told_by_the_official_rules(mixed: Path) -> None:
    page = Runs([mixed]).page({}, "", 1)
    outcomes = {row["id"]: row["sides"][0]["outcome"] for row in page["rows"]}
    assert outcomes == {"a": "right", "b": "wrong", "c": "none", "d": "right", "e": "failed"}
    assert page["runs"][0]["outcomes"]["right"] == ["right", 2]


def test_choices_of_one_facet_add_up_and_those_of_two_narrow(mixed: Path) -> None:
    runs = Runs([mixed])
    assert ids(runs.page({"outcome": ["right", "wrong"]}, "", 1)) == ["a", "b", "d"]
    assert ids(runs.page({"outcome": ["right", "wrong"], "type": ["comparison"]}, "", 1)) == ["d"]


def test_a_count_says_what_its_choice_would_show(mixed: Path) -> None:
    runs = Runs([mixed])
    chosen = {"outcome": ["right"], "type": ["comparison"]}
    for name, facet in runs.page(chosen, "where", 1)["facets"].items():
        for value in facet["labels"]:
            there = runs.page(chosen | {name: [value]}, "where", 1)
            assert there["total"] == counts(runs.page(chosen, "where", 1), name)[value]


def test_steps_stand_in_the_order_of_numbers(mixed: Path) -> None:
    labels = Runs([mixed]).page({}, "", 1)["facets"]["steps"]["labels"]
    assert list(labels) == ["2", "3", "5", "10"]


def test_every_word_searched_for_must_stand_in_question_or_answer(tmp_path: Path) -> None:
    runs = Runs([run_folder(tmp_path, [trajectory("x", "Busan"), trajectory("y", text="서울은")])])
    assert ids(runs.page({}, "BUSAN where", 1)) == ["x"]
    assert ids(runs.page({}, "서울", 1)) == ["y"]
    assert runs.page({}, "busan nowhere", 1)["total"] == 0


def test_pages_partition_the_list(tmp_path: Path) -> None:
    runs = Runs([run_folder(tmp_path, [trajectory(f"{n:03}") for n in range(120)])])
    pages = [runs.page({}, "", n) for n in (1, 2, 3)]
    assert [len(page["rows"]) for page in pages] == [PAGE_ROWS, PAGE_ROWS, 20]
    assert [row_id for page in pages for row_id in ids(page)] == [f"{n:03}" for n in range(120)]
    assert [page["first"] for page in pages] == [1, 51, 101]
    beyond = runs.page({}, "", 99)
    assert (beyond["page"], beyond["pages"], ids(beyond)) == (3, 3, ids(pages[2]))


def test_a_facet_that_is_not_there_is_refused(mixed: Path) -> None:
    with pytest.raises(SteperError, match="no choice 'compare'"):
        Runs([mixed]).page({"compare": ["both"]}, "", 1)


# ---- one trajectory --------------------------------------------------------------------------


def test_a_view_shows_trajectory_scores_and_usage(mixed: Path) -> None:
    (mixed / "scores.jsonl").write_text('{"id": "a", "em": 1.0, "recall": NaN}\n')
    (mixed / "usage.jsonl").write_text('{"id": "a", "steps": [{"prompt_tokens": 7}]}\n')
    view = Runs([mixed]).view("a")
    assert view is not None
    (side,) = view["sides"]
    assert side["trajectory"]["steps"][1]["reasoning"] == "It is in Seoul."
    assert side["scores"] == {"id": "a", "em": 1.0, "recall": None}
    assert side["usage"] == [{"prompt_tokens": 7}]


def test_a_failed_question_says_why(mixed: Path) -> None:
    view = Runs([mixed]).view("e")
    assert view is not None
    assert view["sides"][0]["why"] == "step 3: too long"
    assert Runs([mixed]).view("nobody") is None


def test_a_bad_line_is_shown_with_its_place_and_the_others_are_read(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [trajectory("a"), trajectory("b")])
    path = folder / "trajectories.jsonl"
    first, second = path.read_text().splitlines()
    deep = "[" * 100_000
    path.write_text(f'{first}\n{{"question": 3}}\n\n{deep}\n{second}\n')
    (folder / "scores.jsonl").write_text(f'[]\n{deep}\n{{"id": "b", "em": 1}}\n')
    runs = Runs([folder])
    page = runs.page({"outcome": ["unreadable"]}, "", 1)
    assert ids(page) == ["run/trajectories.jsonl:2", "run/trajectories.jsonl:4"]
    view = runs.view("run/trajectories.jsonl:2")
    assert view is not None
    assert "run/trajectories.jsonl:2: question" in view["sides"][0]["why"]
    assert runs.page({"outcome": ["right"]}, "", 1)["total"] == 2
    assert [p.split(" is ")[0] for p in page["runs"][0]["problems"]] == [
        "scores.jsonl:1:",
        "scores.jsonl:2:",
    ]


# ---- runs that grow --------------------------------------------------------------------------


def test_a_growing_run_is_read_on_and_its_torn_line_waited_for(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, [trajectory("b")], finished=False)
    path = folder / "trajectories.jsonl"
    line = to_json(trajectory("a")) + "\n"
    with path.open("a") as file:
        file.write(line[:40])
    runs = Runs([folder])
    page = runs.page({}, "", 1)
    assert (ids(page), page["runs"][0]["running"]) == (["b"], True)
    with path.open("a") as file:
        file.write(line[40:])
    assert ids(runs.page({}, "", 1)) == ["b", "a"]


def test_a_run_that_finishes_meanwhile_is_read_anew(tmp_path: Path) -> None:
    run = Run.open(tmp_path, stage="rollout", config={}, inputs={})
    log = run.log("trajectories", Trajectory, key=lambda t: t.id)
    runs = Runs([tmp_path])
    assert runs.page({}, "", 1)["all"] == 0
    log.append(trajectory("b"))
    log.append(trajectory("a", "Busan"))
    assert ids(runs.page({}, "", 1)) == ["b", "a"]
    log.finish()
    run.finish({})
    page = runs.page({}, "", 1)
    assert (ids(page), page["runs"][0]["running"]) == (["a", "b"], False)
    view = runs.view("a")
    assert view is not None
    assert view["sides"][0]["trajectory"]["answer"] == "Busan"


def test_a_failure_made_good_is_none_any_more(mixed: Path) -> None:
    runs = Runs([mixed])
    assert runs.page({"outcome": ["failed"]}, "", 1)["total"] == 1
    with (mixed / "trajectories.jsonl").open("a") as file:
        file.write(to_json(trajectory("e")) + "\n")
    assert "failed" not in counts(runs.page({}, "", 1), "outcome")


def test_20_000_trajectories_take_little_memory_and_pages_read_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = tuple(Passage(f"p{n}", f"Title {n}", "word " * 40) for n in range(6))
    one = Trajectory(Question("ID", "Who?", "A"), (Step("q", passages, "It is A."),), "A")
    before, after = to_json(one).split("ID")
    Run.open(tmp_path, stage="rollout", config={}, inputs={}).finish({})
    with (tmp_path / "trajectories.jsonl").open("w") as file:
        file.writelines(f"{before}q{n:05}{after}\n" for n in range(20_000))
    tracemalloc.start()
    runs = Runs([tmp_path])
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "trajectories.jsonl").stat().st_size
    assert held < size / 2
    assert peak < size / 2 + 10_000_000
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: reads.append(n) or pread(fd, n, at))
    page = runs.page({"outcome": ["right"]}, "who q1999", 2)
    assert (page["total"], page["pages"], reads) == (10, 1, [])
    assert ids(runs.page({}, "", 400))[-1] == "q19999"
    assert runs.view("q19999") is not None
    assert len(reads) == 1


# ---- two runs --------------------------------------------------------------------------------


def test_two_runs_are_joined_by_question(tmp_path: Path) -> None:
    first = run_folder(
        tmp_path / "one",
        [trajectory("a"), trajectory("b", "Busan"), trajectory("c"), trajectory("d", "Busan")],
    )
    second = run_folder(
        tmp_path / "two",
        [trajectory("e"), trajectory("b"), trajectory("a", "Busan"), trajectory("c")],
    )
    runs = Runs([first, second])
    page = runs.page({}, "", 1)
    assert ids(page) == ["a", "b", "c", "d", "e"]
    assert counts(page, "compare") == {"first": 1, "second": 1, "both": 1}
    assert counts(page, "outcome") == {"right": 2, "wrong": 2, "absent": 1}
    assert counts(page, "outcome2") == {"right": 3, "wrong": 1, "absent": 1}
    assert ids(runs.page({"compare": ["first", "second"]}, "", 1)) == ["a", "b"]
    view = runs.view("a")
    assert view is not None
    assert [side["trajectory"]["answer"] for side in view["sides"]] == ["Seoul", "Busan"]
    only = runs.view("e")
    assert only is not None
    assert only["sides"][0] is None


def test_samples_meet_their_own_number_and_else_the_first(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "one", [trajectory("a", "A0"), trajectory("a", "A1", sample=1)])
    second = run_folder(tmp_path / "two", [trajectory("a", "B0"), trajectory("a", "B2", sample=2)])
    rows = Runs([first, second]).page({}, "", 1)["rows"]
    answers = {row["id"]: [side["answer"] for side in row["sides"]] for row in rows}
    assert answers == {"a": ["A0", "B0"], "a~1": ["A1", "B0"], "a~2": ["A0", "B2"]}


def test_runs_of_one_name_are_told_apart_and_an_evaluation_has_its_label(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / seed / "rollout", [trajectory("a")]) for seed in "xy"]
    assert Runs(folders).title == "x/rollout beside y/rollout"
    evaluation = run_folder(tmp_path / "e", [trajectory("a")], stage="evaluate")
    write_json(evaluation / "results.json", {"label": "student"})
    assert Runs([folders[0], evaluation]).title == "rollout beside student"


# ---- verdicts --------------------------------------------------------------------------------


def test_a_build_tells_what_was_kept_and_what_dropped_by_which_filter(
    mixed: Path, tmp_path: Path
) -> None:
    wrong, silent = trajectory("b", "Busan", steps=3), trajectory("c", " ", steps=5)
    rejected = [
        Rejected("answer", "em 0.00 < 1", wrong, also=("length",)),
        Rejected("kept", "a filter of this name", silent),
    ]
    build = build_folder(tmp_path / "build", mixed, rejected)
    runs = Runs([mixed], build=build)
    page = runs.page({}, "", 1)
    assert counts(page, "verdict") == {"kept": 2, "dropped by answer": 1, "dropped by kept": 1}
    assert ids(runs.page({"verdict": ["kept"]}, "", 1)) == ["a", "d"]
    view = runs.view("b")
    assert view is not None
    verdict = {"filter": "answer", "reason": "em 0.00 < 1", "also": ["length"]}
    assert view["sides"][0]["verdict"] == verdict


def test_what_a_judge_said_of_a_step_is_shown_with_it(mixed: Path, tmp_path: Path) -> None:
    build = build_folder(tmp_path / "build", mixed, [])
    said = [Verdict("a", 2, Rating(True, False, "known")), Verdict("a", 1, None, raw="Well,")]
    write_records(build / "verdicts.jsonl", said)
    runs = Runs([mixed], build=build)
    view, other = runs.view("a"), runs.view("b")
    assert view is not None
    assert other is not None
    judged = view["sides"][0]["judged"]
    assert judged[2]["rating"] == {"supported": True, "useful": False, "reason": "known"}
    assert (judged[1]["rating"], judged[1]["raw"]) == (None, "Well,")
    assert other["sides"][0]["judged"] == {}


def test_the_run_that_a_build_read_is_found_among_two(mixed: Path, tmp_path: Path) -> None:
    build = build_folder(tmp_path / "build", mixed, [])
    other = run_folder(tmp_path / "other", [trajectory("a")])
    facets = Runs([other, mixed], build=build).page({}, "", 1)["facets"]
    assert ("verdict" in facets, "verdict2" in facets) == (False, True)
    with pytest.raises(SteperError, match="built from other trajectories"):
        Runs([other], build=build)


# ---- mistakes --------------------------------------------------------------------------------


def test_folders_without_trajectories_are_refused_with_what_to_do(
    mixed: Path, tmp_path: Path
) -> None:
    build = build_folder(tmp_path / "build", mixed, [])
    with pytest.raises(SteperError, match="--build"):
        Runs([build])
    training = tmp_path / "training"
    Run.open(training, stage="train", config={}, inputs={}).finish({})
    with pytest.raises(SteperError, match="steper train"):
        Runs([training])
    with pytest.raises(SteperError, match="There are runs in it: mixed"):
        Runs([tmp_path])
    with pytest.raises(SteperError, match="not a run folder"):
        Runs([tmp_path / "nowhere"])
    with pytest.raises(SteperError, match="given twice"):
        Runs([mixed, mixed / "." / ".." / "mixed"])
    with pytest.raises(SteperError, match="3 runs are given"):
        Runs([mixed, build, training])


# ---- the page --------------------------------------------------------------------------------


class Elements(HTMLParser):
    """The names of the elements, and the text of the scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self.names and self.names[-1] in ("script", "style") and data.strip():
            self.inside.append(data)


def test_hostile_texts_cannot_leave_the_embedded_data(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [trajectory("a", HOSTILE, text=HOSTILE)])
    data = Runs([folder]).embedded(10)
    hostile, plain = Elements(render(data)), Elements(render())
    assert hostile.names == plain.names
    embedded = hostile.inside[-2]
    assert "<" not in embedded
    assert json.loads(embedded) == json.loads(json.dumps(data))


def test_only_the_pages_own_script_and_style_may_run() -> None:
    page = Elements(render())
    style, _, script = page.inside
    policy = next(a["content"] for a in page.attributes if a.get("http-equiv")) or ""
    for kind, text in (("style", style), ("script", script)):
        own = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{own}';" in policy
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert "connect-src 'none'" in render({})
    for way in (
        "innerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http://",
        "https://",
    ):
        assert way not in render()


def test_the_file_holds_the_first_trajectories(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    options: dict[str, Any] = {"build": None, "port": 0, "open_browser": False}
    assert browse([mixed], out=out, limit=2, **options) == out
    data = json.loads(Elements(out.read_text()).inside[-2])
    assert list(data["views"]) == ids(data) == ["a", "b"]
    assert data["all"] == 5
    with pytest.raises(SteperError, match="is a folder"):
        browse([mixed], out=tmp_path, limit=2, **options)


# ---- the server ------------------------------------------------------------------------------

Get = Callable[..., tuple[int, Any]]


@pytest.fixture
def get(mixed: Path) -> Iterator[Get]:
    """Ask a real server."""
    with Server(Runs([mixed]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(target: str, *, host: str = "localhost", method: str = "GET") -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request(method, target, headers={"Host": host})
            reply = connection.getresponse()
            body = reply.read().decode()
            json_ = reply.headers["Content-Type"].startswith("application/json")
            return reply.status, json.loads(body) if json_ else body

        yield ask
        server.shutdown()


def test_the_server_answers_page_list_and_trajectory(get: Get) -> None:
    assert get("/") == (200, render())
    status, page = get("/api/page?outcome=right&outcome=wrong&q=where&page=1")
    assert (status, ids(page)) == (200, ["a", "b", "d"])
    status, view = get("/api/trajectory?id=b", host="127.0.0.1:80")
    assert (status, view["sides"][0]["trajectory"]["answer"]) == (200, "Busan")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/page?page=0", 400),
        ("/api/page?page=-1", 400),
        ("/api/page?page=²", 400),
        ("/api/page?page=99999999999999999999", 400),
        ("/api/page?q=a&q=b", 400),
        ("/api/page?colour=red", 400),
        ("/api/page?" + "&".join(f"type={n}" for n in range(300)), 400),
        ("/api/trajectory", 404),
        ("/api/trajectory?id=%00", 404),
        ("/../manifest.json", 404),
        ("/%2e%2e/manifest.json", 404),
        ("/trajectories.jsonl", 404),
        ("//[", 400),
    ],
)
def test_what_cannot_be_asked_is_refused_in_json(mixed: Path, target: str, status: int) -> None:
    reply = respond(Runs([mixed]), target)
    assert reply.status == status
    assert json.loads(reply.body)["error"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["", "/", "/api/page?", "/api/trajectory?id="]), st.text(max_size=40))
def test_whatever_is_asked_there_is_an_answer(mixed: Path, start: str, rest: str) -> None:
    assert respond(Runs([mixed]), start + rest).status in (200, 400, 404)


def test_other_hosts_and_other_methods_get_nothing(get: Get) -> None:
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80"):
        status, body = get("/api/page", host=host)
        assert (status, list(body)) == (403, ["error"])
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get("/api/page", method=method)[0] == 501
    assert get("/api/page")[0] == 200


def test_a_port_in_use_is_named(mixed: Path) -> None:
    runs = Runs([mixed])
    with Server(runs, 0) as server, pytest.raises(SteperError, match=f"port {server.server_port}"):
        Server(runs, server.server_port)


class Window:
    """A browser with a window."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, url: str) -> None:
        self.opened.append(url)


def test_ctrl_c_ends_the_server_politely(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: Server) -> None:
        raise KeyboardInterrupt

    window = Window()
    monkeypatch.setattr(Server, "serve_forever", interrupt)
    monkeypatch.setattr("webbrowser.get", lambda: window)
    shown = browse([mixed], build=None, port=0, out=None, limit=1, open_browser=True)
    assert shown is None
    said = capsys.readouterr().out
    assert said.endswith("Ended.\n")
    assert len(window.opened) == 1
    assert window.opened[0] in said


def test_no_browser_is_opened_in_the_terminal_or_where_there_is_none(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"build": None, "port": 0, "out": None, "limit": 1}
    monkeypatch.setattr(Server, "serve_forever", lambda self: None)
    for browsers in ([], [webbrowser.GenericBrowser(["false", "%s"])]):
        opened: list[str] = []

        def get(browsers: list[webbrowser.GenericBrowser] = browsers) -> Any:
            if not browsers:
                raise webbrowser.Error
            return browsers[0]

        monkeypatch.setattr("webbrowser.get", get)
        monkeypatch.setattr(
            webbrowser.GenericBrowser, "open", lambda self, url, o=opened: o.append(url)
        )
        assert browse([mixed], open_browser=True, **options) is None
        assert opened == []
