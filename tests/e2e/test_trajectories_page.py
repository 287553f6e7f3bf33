"""The trajectory browser in a real, headless Chromium: served, and as a file that stands alone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from steper.store import Run, write_records
from steper.trajectories import Server, browse
from steper.trajectories.views import Runs
from steper.types import Failure, Passage, Question, Step, Trajectory

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-component-update", "--disable-background-networking", "--disable-sync"),
    *("--virtual-time-budget=4000", "--dump-dom"),
)
HOSTILE = (
    '<script>document.title="owned"</script></script><script>document.title="owned"</script>'
    "<img src=x onerror='document.title=\"owned\"'><!-- "
)

ACTS = """
const press = key => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const acts = [() => press("j"), () => press("ArrowRight"), () => press("k"), () => history.back(),
  () => document.querySelector("[data-key='compare=first,second']").click(), () => press("j"),
  () => press("/"), () => {
    $("search").value = "nowhere";
    $("search").dispatchEvent(new Event("input"));
  }, () => press("Escape"), () => press("j"), () => history.back()];
const seen = [];
(async () => {
  for (const act of acts) {
    act();
    await new Promise(done => setTimeout(done, 250));
    seen.push([location.hash, document.activeElement.id || "-", $("rows").children.length]);
  }
  document.body.dataset.seen = JSON.stringify(seen);
})();
"""
"""What a reader does, one after the other, and what came of each."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs one of {', '.join(NAMES)}")


def trajectories(wrong: str) -> list[Trajectory]:
    """Sixty questions; those whose number ends in one of the digits of ``wrong`` go wrong."""
    clark = Passage("p1", "Roy Clark", "Born in 1933, Roy Clark hosted the variety show Hee Haw.")
    seoul = Passage("p2", "서울", "서울특별시는 1394년부터 대한민국의 수도이다.")
    bad = Passage("p3", HOSTILE, HOSTILE)
    ended = []
    for n in range(60):
        question = Question(
            f"q{n:02}",
            "Which show did Jim Halsey's client host?" if n else HOSTILE,
            "Hee Haw",
            type="bridge" if n % 2 else "비교",
            supporting_titles=("Roy Clark",),
        )
        answer = "Opry" if str(n)[-1] in wrong else "Hee Haw"
        steps = (
            Step(
                question.question, (clark, bad), "Roy Clark moved to Tulsa in 1933.", ("No.",) * 2
            ),
            Step("서울", (seoul,), "서울은 1394년에 수도가 되고 1988년에 잔치를 열었다."),
            Step("x", (), f"So the answer is: {answer}."),
        )
        ended.append(Trajectory(question, steps, answer))
    return ended


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A teacher's run and a student's."""
    folder = tmp_path_factory.mktemp("runs")
    for name, wrong in (("teacher", "1"), ("student", "1234")):
        run = Run.open(folder / name, stage="rollout", config={}, inputs={})
        write_records(folder / name / "trajectories.jsonl", trajectories(wrong))
        question = Question("z", "Who asked too much?", "Nobody")
        failure = Failure("z", question, 0, 1, HOSTILE)
        write_records(folder / name / "failed.jsonl", [failure])
        run.finish({})
    return [folder / "teacher", folder / "student"]


@pytest.fixture(scope="module")
def served(folders: list[Path]) -> Iterator[str]:
    with Server(Runs(folders), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


@pytest.fixture(scope="module")
def alone(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    browse(folders, build=None, port=0, out=out, limit=1000, open_browser=False)
    return out.as_uri()


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chromium")


def body(url: str, profile: Path, *, width: int = 1280) -> str:
    """The page's body after its script has run, without the scripts."""
    window = f"--window-size={width},900"
    command = [str(CHROMIUM), *FLAGS, window, f"--user-data-dir={profile}", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1].endswith("steper trajectories")
    return re.sub("<script.*?</script>", "", done.stdout.split("<body", 1)[1], flags=re.DOTALL)


def pressed(dom: str) -> list[str]:
    """The choices that are taken."""
    return re.findall(r'aria-pressed="true" class="[^"]*" data-key="([^"]*)"', dom)


def listed(dom: str) -> list[str]:
    """The trajectories in the list."""
    return re.findall(r'data-key="row=([^"]*)"', dom)


@pytest.mark.parametrize("hash_", ["", "compare=first&type=bridge&q=halsey", "page=2&id=q51"])
def test_the_file_shows_what_the_server_shows(
    served: str, alone: str, profile: Path, hash_: str
) -> None:
    assert body(f"{alone}#{hash_}", profile) == body(f"{served}#{hash_}", profile)


def test_the_address_says_what_is_shown(served: str, profile: Path) -> None:
    dom = body(f"{served}#compare=first&type=bridge", profile)
    assert listed(dom) == [f"q{n:02}" for n in range(60) if n % 10 == 3]
    assert pressed(dom) == ["compare=first", "type=bridge"]
    assert "6 of 61 trajectories" in dom
    second = body(f"{served}#page=2&id=q51", profile)
    assert listed(second) == [*(f"q{n}" for n in range(50, 60)), "z"]
    assert "52 of 61 · q51" in second
    assert "There is no choice &#" not in second


def test_both_runs_stand_side_by_side(served: str, profile: Path) -> None:
    dom = body(f"{served}#id=q03", profile)
    teacher, student = dom.split("<article")[1:]
    assert 'class="side is-right" aria-label="teacher"' in teacher
    assert "So the answer is: <mark" in teacher
    assert "Hee Haw</mark>" in teacher
    assert 'class="side is-wrong" aria-label="student"' in student
    assert '<span class="nowhere" title="in no passage so far">Opry</span>' in student


def test_words_of_the_sentence_are_marked_where_they_stand(alone: str, profile: Path) -> None:
    dom = body(f"{alone}#id=q03", profile)
    assert '<b><mark class="">Roy Clark</mark></b><span class="badge">◆ gold</span>' in dom
    assert 'Born in <mark class="">1933</mark>, <mark class="">Roy Clark</mark> hosted' in dom
    assert '<mark class="gold">Hee Haw</mark>' in dom
    assert '<span class="nowhere" title="in no passage so far">Tulsa</span>' in dom
    assert '<mark class="">서울</mark>은 <mark class="">1394년</mark>에' in dom
    assert '<span class="nowhere" title="in no passage so far">1988년에</span> 잔치를' in dom
    assert "0 of 2 sentences drawn say this" in dom
    assert "No. ×2" in dom


@pytest.mark.parametrize(("width", "searched"), [(1280, "&id=q03"), (390, "")])
def test_keys_and_clicks_go_through_the_list_and_back_comes_back(
    alone: str, profile: Path, tmp_path: Path, width: int, searched: str
) -> None:
    """On a phone, where an open trajectory hides the list, a search comes back to it."""
    page = Path(alone.removeprefix("file://")).read_text()
    # The page's policy lets no script run but its own, and this test's is another.
    page = re.sub("<meta http-equiv.*?>", "", page)
    (tmp_path / "page.html").write_text(page.replace("</body>", f"<script>{ACTS}</script></body>"))
    dom = body((tmp_path / "page.html").as_uri(), profile, width=width)
    found = re.search('data-seen="([^"]*)"', dom)
    assert found is not None
    differ = "#compare=first&compare=second"
    assert json.loads(html.unescape(found[1])) == [
        ["#id=q01", "-", 50],
        ["#id=q02", "-", 50],
        ["#id=q01", "-", 50],
        ["#id=q02", "-", 50],
        [differ, "-", 18],
        [f"{differ}&id=q03", "-", 18],
        [differ + searched, "search", 18],
        [f"{differ}&q=nowhere", "search", 0],
        [f"{differ}&q=nowhere", "-", 0],
        [f"{differ}&q=nowhere", "-", 0],
        [differ + searched, "-", 18],
    ]


@pytest.mark.parametrize("opened", ["q00", "z"])
def test_hostile_texts_are_shown_and_do_not_run(
    served: str, alone: str, profile: Path, opened: str
) -> None:
    for url in (served, alone):
        dom = body(f"{url}#id={opened}", profile)  # This checks the title, too.
        assert "<img" not in dom
        assert '&lt;script&gt;document.title="owned"' in dom


def test_a_bad_address_is_explained(served: str, profile: Path) -> None:
    dom = body(f"{served}#colour=red", profile)
    assert listed(dom) == []
    assert "there is no choice 'colour' in these runs." in dom
