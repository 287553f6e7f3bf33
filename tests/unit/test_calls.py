"""The cache of calls: what is stored comes back, for whoever asks the same, after any kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from steper.errors import SteperError
from steper.lm.calls import CallCache, call_key
from steper.protocols import Completion, Usage

ASKED = {"form": "completions", "model": "m", "prompt": "Who?", "temperature": 0.0}
GIVEN = Completion("Roy\x00 Clark é\n", Usage(10, 4, 3, 0.25, cost=9.0))


def test_an_answer_comes_back_as_replayed_and_without_its_old_price(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "new" / "calls.sqlite")
    assert cache.get(ASKED) is None
    cache.put(ASKED, GIVEN, model="m-2026")
    cache.close()
    again = CallCache(tmp_path / "new" / "calls.sqlite")
    known = again.get(dict(reversed(ASKED.items())))  # the order of the fields does not matter
    assert known == Completion(GIVEN.text, Usage(10, 4, 3, 0.25), replayed=True)
    assert again.count() == 1


def test_the_first_answer_stays(tmp_path: Path) -> None:
    cache = CallCache(tmp_path / "calls.sqlite")
    cache.put(ASKED, GIVEN)
    cache.put(ASKED, Completion("Someone else."))
    assert cache.get(ASKED).text == GIVEN.text


@pytest.mark.parametrize("field", list(ASKED))
def test_every_field_counts(field: str) -> None:
    assert call_key(ASKED) != call_key({**ASKED, field: "other"})
    assert call_key(ASKED) != call_key({name: v for name, v in ASKED.items() if name != field})


def test_a_killed_process_loses_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    code = (
        "import sys; from pathlib import Path; from steper.lm.calls import CallCache\n"
        "from steper.protocols import Completion\n"
        "cache = CallCache(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    cache.put({'n': number}, Completion(str(number))); print(number, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(200):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    told = 200 + len([line for line in child.stdout.read().splitlines(True) if line[-1] == "\n"])
    child.stdout.close()
    child.wait()
    cache = CallCache(path)
    assert [cache.get({"n": n}).text for n in range(told)] == [str(n) for n in range(told)]


def test_processes_and_threads_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"  # made by all of them together
    code = (
        "import sys; from pathlib import Path; from steper.lm.calls import CallCache\n"
        "from steper.protocols import Completion\n"
        "sys.stdin.readline()\n"
        "cache = CallCache(Path(sys.argv[1]))\n"
        "for number in range(100):\n"
        "    cache.put({'by': sys.argv[2], 'n': number}, Completion(sys.argv[2]))\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(by)], stdin=subprocess.PIPE, text=True
        )
        for by in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    cache = CallCache(path)

    def write(by: str) -> None:
        for number in range(100):
            cache.put({"by": by, "n": number}, Completion(by))
            assert cache.get({"by": by, "n": number}).text == by

    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=30) == 0
    assert cache.count() == 800


def test_a_new_file_is_made_once_by_all_who_want_it(tmp_path: Path) -> None:
    for number in range(20):
        start = threading.Barrier(6)

        def make(path: Path, start: threading.Barrier = start) -> int:
            start.wait()
            cache = CallCache(path)
            cache.put({"thread": threading.get_ident()}, GIVEN)
            cache.close()
            return 1

        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(make, [tmp_path / f"{number}.sqlite"] * 6))
        assert sum(made) == CallCache(tmp_path / f"{number}.sqlite").count() == 6


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE calls (key, text)")
    database.close()
    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 20)
    text = tmp_path / "text.sqlite"
    text.write_text("a cache? " * 100, encoding="utf-8")
    for path in (foreign, torn, text):
        before = path.read_bytes()
        with pytest.raises(SteperError) as error:
            CallCache(path)
        assert str(error.value).startswith(f"{path}:")
        assert path.read_bytes() == before
    with pytest.raises(SteperError, match="cannot be used"):
        CallCache(tmp_path)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallCache(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SteperError, match="format 99"):
        CallCache(path)


def test_damage_found_later_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    cache = CallCache(path)
    for number in range(500):
        cache.put({"n": number}, Completion("x" * 200))
    cache.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(SteperError, match=str(path)):
        CallCache(path).get({"n": 3})
