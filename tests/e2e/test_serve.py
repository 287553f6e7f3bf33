"""`steper index serve` as a process: what it prints, what it finds, how it is stopped, killed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from steper.retrieval.indexes import open_index
from steper.retrieval.remote import RemoteIndex
from steper.store import read_records, write_records
from steper.types import Passage
from steper.world.generator import World

STEPER = [sys.executable, "-m", "steper.cli"]

SLOW = """
import sys
from pathlib import Path
from steper.retrieval.indexes import open_index
from steper.serve import serve_index

class Slow:
    def __init__(self, index):
        self.info, self.index = index.info, index

    def search(self, queries, k):
        print("searching", flush=True)
        sys.stdin.readline()
        return self.index.search(queries, k)

serve_index(Slow(open_index(Path(sys.argv[1]))), port=0)
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    world = World.generate(seed=0, part="train", entities=40)
    write_records(folder / "corpus.jsonl", world.passages.values())
    command = [*STEPER, "index", str(folder / "corpus.jsonl"), "--out", str(folder / "index")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "index"


@contextmanager
def serving(index: Path, *, port: int = 0, slow: bool = False) -> Iterator[Process]:
    command = [*STEPER, "index", "serve", str(index), "--port", str(port)]
    process = Process([sys.executable, "-c", SLOW, str(index)] if slow else command)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


class Process:
    """The command, once it has printed where it is."""

    def __init__(self, command: list[str]) -> None:
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.ready, self.example = self.line(), self.line()
        self.url = self.ready.rpartition(" ")[2]

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()


QUERIES = ["Who is it?", "", "hosted", "a 😀 한국어 \x00", "x " * 500_000]


def test_the_command_says_where_it_is_and_finds_what_the_index_finds(index: Path) -> None:
    direct = open_index(index)
    passages = read_records(index.with_name("corpus.jsonl"), Passage)
    queries = QUERIES + [passage.text for passage in passages[:40]]
    with serving(index) as process:
        assert process.ready == (
            f"bm25 index of {len(passages)} passages at http://127.0.0.1:{process.url[17:]}"
        )
        remote = RemoteIndex(process.url)
        assert remote.search(queries, 4) == direct.search(queries, 4)
        assert remote.info == direct.info


def test_the_example_can_be_pasted(index: Path) -> None:
    with serving(index) as process:
        _, curl, *words = shlex.split(process.example)
        assert curl == "curl"
        url, body = words[1], words[-1]
        assert urllib3.request("POST", url, body=body).json().keys() == {"results", "index"}


def test_a_stop_lets_searches_end(index: Path) -> None:
    """SIGTERM while a search is under way: it is answered, and nobody else is let in."""
    with serving(index, slow=True) as process, ThreadPoolExecutor() as pool:
        remote = RemoteIndex(process.url, retries=0)
        answer = pool.submit(remote.search, ["hosted"], 3)
        assert process.line() == "searching"
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.stdin is not None
        process.popen.stdin.write("\n")
        process.popen.stdin.flush()
        assert answer.result(20) == open_index(index).search(["hosted"], 3)
        assert process.popen.wait(20) == -signal.SIGTERM


def test_clients_outlive_a_server_that_is_killed_and_started_again(index: Path) -> None:
    with serving(index) as process:
        port = int(process.url.rpartition(":")[2])
        remote = RemoteIndex(process.url)
        before = remote.search(["hosted"], 3)
    with ThreadPoolExecutor() as pool:
        later = pool.submit(remote.search, ["hosted"], 3)
        with serving(index, port=port):
            assert later.result(60) == before


def test_a_port_in_use_is_refused_with_one_line(index: Path) -> None:
    with serving(index) as first:
        port = int(first.url.rpartition(":")[2])
        with serving(index, port=port) as second:
            _, errors = second.popen.communicate(timeout=20)
            assert second.popen.returncode == 2
    assert f"127.0.0.1:{port}: cannot be listened at" in errors.splitlines()[-1]
