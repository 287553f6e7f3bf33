"""Passages on disk: what is written comes back, each once, and little memory is needed."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from steper.corpus.reading import Reject
from steper.errors import SteperError
from steper.retrieval import passages as module
from steper.retrieval.passages import PassageFile, offsets_of, write_passages
from steper.store import sha256, to_json
from steper.types import Passage

ODD = [
    Passage("1", "Roy Clark", "Hosted Hee Haw."),
    Passage("2", "", 'Quotes " and \\ and \n newlines\u2028\u2029\x00\x85.'),
    Passage("3", "서울 🙂", "서울은 대한민국의 수도이다. e\u0301 is not é."),
]


def test_passages_come_back_exactly(tmp_path: Path) -> None:
    written = write_passages(tmp_path / "passages.jsonl", ODD)
    opened = PassageFile(tmp_path / "passages.jsonl")
    assert list(opened) == ODD and opened[-1] == ODD[2] and opened[:2] == ODD[:2]
    assert list(opened.iterate(1, 3)) == ODD[1:] and list(opened.iterate(2, 2)) == []
    lines = (tmp_path / "passages.jsonl").read_bytes()
    assert lines == "".join(f"{to_json(passage)}\n" for passage in ODD).encode()
    assert written.sha256 == sha256(tmp_path / "passages.jsonl")
    assert written.words == sum(len(f"{p.title} {p.text}".split()) for p in ODD)
    with pytest.raises(IndexError):
        opened[3]


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    first, second = Passage("a", "T", "One  two."), Passage("b", "T", "One\ntwo. ")
    other = Passage("c", "T two.", "One")
    path = tmp_path / "passages.jsonl"
    written = write_passages(path, [first, second, other, second])
    assert list(written.passages) == [first, other] and written.duplicates == 2
    assert written.words == 6 and written.sha256 == sha256(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["offsets.npy", "passages.jsonl"]
    # Under ids of their own they can be kept, under the same one they cannot.
    written = write_passages(path, [first, second, other, second], keep_duplicates=True)
    assert list(written.passages) == [first, second, other] and written.duplicates == 1


def test_an_id_used_twice_is_rejected_with_the_first(tmp_path: Path) -> None:
    first, second, third = (Passage("a", "T", text) for text in ("One.", "Two.", "Three."))
    rejects: list[Reject] = []
    written = write_passages(
        tmp_path / "passages.jsonl", [first, second, third], reject=rejects.append
    )
    assert list(written.passages) == [first] and written.duplicates == 0 and written.words == 2
    assert rejects[0].where == "passage 2 (id 'a')" and len(rejects) == 2
    assert rejects[1].reason == "the id is used twice, first by passage 1 ('T')."
    with pytest.raises(SteperError, match="used twice, first by passage 1"):
        write_passages(tmp_path / "passages.jsonl", [first, second])


def test_a_rejected_passage_is_no_reason_to_drop_another(tmp_path: Path) -> None:
    first, clash, later = Passage("a", "", "X."), Passage("a", "", "Y."), Passage("b", "", "Y.")
    rejects: list[Reject] = []
    written = write_passages(tmp_path / "p.jsonl", [first, clash, later], reject=rejects.append)
    assert list(written.passages) == [first, later] and len(rejects) == 1


def test_equal_hashes_are_not_taken_for_equal_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hash", lambda value: 7, raising=False)
    written = write_passages(tmp_path / "p.jsonl", [*ODD, *ODD])
    assert list(written.passages) == ODD and written.duplicates == 3


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    rejects: list[Reject] = []
    half = Passage("x\ud800", "T", "Text \udfff.")
    written = write_passages(tmp_path / "p.jsonl", [half, ODD[0]], reject=rejects.append)
    assert list(written.passages) == ODD[:1]
    assert "lone surrogate" in rejects[0].reason and to_json(rejects[0]).encode()


def test_threads_read_at_once(tmp_path: Path) -> None:
    expected = [Passage(str(n), "", f"text {n} " * (n % 90 + 1)) for n in range(2000)]
    passages = write_passages(tmp_path / "p.jsonl", expected).passages
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(passages.__getitem__, range(2000))) == expected


def test_files_are_closed_with_their_passages(tmp_path: Path) -> None:
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("this system does not tell which files are open")
    write_passages(tmp_path / "p.jsonl", ODD)
    before = len(list(open_files.iterdir()))
    for _ in range(50):
        assert PassageFile(tmp_path / "p.jsonl")[0] == ODD[0]
    assert len(list(open_files.iterdir())) < before + 5


def test_no_passages(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="there are no passages to write"):
        write_passages(tmp_path / "p.jsonl", [])


def test_a_file_that_does_not_fit_its_offsets_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_passages(path, ODD)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(SteperError, match="do not fit offsets"):
        PassageFile(path)
    offsets_of(path).write_bytes(b"no offsets")
    with pytest.raises(SteperError, match=r"offsets\.npy: cannot be read"):
        PassageFile(path)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """100 MB of passages through a process that may allocate 60 MB more than it began with."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell a process's peak memory")
    code = f"""
from pathlib import Path
from steper.retrieval.passages import write_passages
from steper.types import Passage
line = "word " * 2000
passages = (Passage(str(n), "", f"{{line}}{{n % 9_000}}") for n in range(10_000))
# Not ru_maxrss: a new process inherits that of its parent.
peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) >> 10
before = peak()
written = write_passages(Path({str(tmp_path)!r}) / "p.jsonl", passages)
assert sum(1 for _ in written.passages) == 9_000
print(peak() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 60


@pytest.mark.parametrize("seed", range(5))
def test_as_a_set_would_do_it(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    passages = [
        Passage(str(a), "", f"text {b}") for a, b in random.integers(0, 40, (200, 2)).tolist()
    ]
    ids: dict[str, str] = {}
    contents: set[str] = set()
    kept, rejected = [], []
    for passage in passages:
        first = ids.setdefault(passage.id, passage.text)
        if first != passage.text:
            rejected.append(f"(id {passage.id!r})")
        elif passage.text not in contents:
            kept.append(passage)
            contents.add(passage.text)
    rejects: list[Reject] = []
    written = write_passages(tmp_path / "p.jsonl", passages, reject=rejects.append)
    assert list(written.passages) == kept
    assert sorted(reject.where.split(" ", 2)[2] for reject in rejects) == sorted(rejected)
    assert written.duplicates == len(passages) - len(kept) - len(rejected)
