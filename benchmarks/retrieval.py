"""What searching by words costs: `steper`'s BM25 beside bm25s, LanceDB and tantivy.

    python benchmarks/retrieval.py --passages 1000000 --json retrieval.json
    python benchmarks/retrieval.py --passages 100000 --engines steper bm25s

=========  =======================================================================================
steper     ``steper index`` and ``steper.retrieval``, two processes for the build
bm25s      as its README shows: English stopwords, stemmer, numba backend, memory-mapped
lancedb    its full-text index on disk, English stemmer and stopwords, without positions
tantivy    tantivy-py, the ``en_stem`` analyzer; any word may match, stopwords taken out of queries
=========  =======================================================================================

The corpus is made of the passages of ``--data`` (three folders with corpus.jsonl and
questions.jsonl, see AGENTS.md), and of new ones put together from their sentences until there are
enough, about 85 words each. In a real corpus new passages bring new names; so each round of new
passages renames the words that begin with a capital and are in at most three passages. Without
``--data`` the texts come from the offline world. Queries are the questions of the data.

Every build and every search runs in a process of its own. ``peak_gb`` is the highest sum of
resident memory over its processes, mapped files included, while building. Searches are made in
``--rounds`` rounds, the engines taking turns; the figures are the medians over the rounds.
``query_p50_ms`` and ``query_p95_ms``: one query at a time, ten passages with their texts, after 50
queries to warm up. ``queries_per_s``: all queries at once, in the way the engine does that best on
two cores. ``same_top10``: how much of bm25s's ten best is among the engine's, where bm25s is there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

K = 10
WARM_UP = 50
WORDS = 75
"""Sentences are put together until there are as many words."""

Found = tuple[int, str]
"""Number and text of a passage."""


# ---- the corpus --------------------------------------------------------------------------------


def make_corpus(path: Path, count: int, data: Path | None) -> list[str]:
    """Write ``count`` passages as JSONL, unless they are there; returns the questions."""
    passages, questions = _read(data) if data else _world()
    if not path.exists():
        partial = path.with_suffix(".tmp")
        with partial.open("w", encoding="utf-8") as file:
            for number, (title, text) in enumerate(_grown(passages, count)):
                row = {"id": str(number), "title": title, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.rename(path)
    return questions


def _read(data: Path) -> tuple[list[tuple[str, str]], list[str]]:
    passages: dict[tuple[str, str], None] = {}
    questions = []
    for folder in sorted(path.parent for path in data.glob("*/corpus.jsonl")):
        for line in (folder / "corpus.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            passages[row["title"], row["text"]] = None
        for line in (folder / "questions.jsonl").open(encoding="utf-8"):
            questions.append(json.loads(line)["question"])
    return list(passages), questions


def _world() -> tuple[list[tuple[str, str]], list[str]]:
    from steper.world.generator import World

    world = World.generate(seed=0, part="train", entities=2000, split=0.5)
    passages = [(passage.title, passage.text) for passage in world.passages.values()]
    return passages, [question.question for question in world.questions(1000, seed=0)]


def _grown(passages: Sequence[tuple[str, str]], count: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(0)
    sentences = [s for _, text in passages for s in re.split(r"(?<=[.!?])\s+", text) if s]
    holders = Counter(word for _, text in passages for word in set(re.findall(r"\w+", text)))
    for number in range(count):
        round_, place = divmod(number, len(passages))
        title, text = passages[place]
        if round_:
            text = ""
            while text.count(" ") < WORDS:
                text += rng.choice(sentences) + " "
            # Letters, so that a stemmer or splitter takes it for one word.
            tail = "".join("abcdefghij"[int(digit)] for digit in str(round_)) + "um"

            def renamed(word: re.Match[str], tail: str = tail) -> str:
                return word[0] + tail if holders[word[0]] <= 3 else word[0]

            title, text = (re.sub(r"\b[A-Z]\w+", renamed, part) for part in (title, text))
        yield title, text.strip()


# ---- the engines ---------------------------------------------------------------------------------


class Steper:
    def build(self, corpus: Path, folder: Path) -> None:
        from steper.config import IndexConfig
        from steper.index import build_index

        build_index(IndexConfig(source=str(corpus), out=folder, workers=2))

    def open(self, folder: Path) -> None:
        from steper.retrieval.indexes import open_index

        self._index = open_index(folder)

    def search(self, query: str) -> list[Found]:
        return self.search_all([query])[0]

    def search_all(self, queries: Sequence[str]) -> list[list[Found]]:
        found = self._index.search(queries, K)
        return [[(int(p.id), f"{p.title} {p.text}") for p in passages] for passages in found]


class BM25s:
    def build(self, corpus: Path, folder: Path) -> None:
        import bm25s
        import Stemmer

        texts = list(_texts(corpus))
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"))
        retriever = bm25s.BM25(backend="numba")
        retriever.index(tokens)
        retriever.save(folder, corpus=texts)

    def open(self, folder: Path) -> None:
        import bm25s
        import Stemmer

        self._tokenize = bm25s.tokenize
        self._stemmer = Stemmer.Stemmer("english")
        self._retriever = bm25s.BM25.load(folder, load_corpus=True, mmap=True)
        self._retriever.backend = "numba"
        self._retriever.activate_numba_scorer()

    def search(self, query: str) -> list[Found]:
        return self._retrieve([query], threads=0)[0]

    def search_all(self, queries: Sequence[str]) -> list[list[Found]]:
        return self._retrieve(queries, threads=2)

    def _retrieve(self, queries: Sequence[str], *, threads: int) -> list[list[Found]]:
        tokens = self._tokenize(
            list(queries),
            stopwords="en",
            stemmer=self._stemmer,
            show_progress=False,
            return_ids=False,
        )
        rows, _ = self._retriever.retrieve(tokens, k=K, n_threads=threads, show_progress=False)
        return [[(row["id"], row["text"]) for row in found] for found in rows]


class LanceDB:
    def build(self, corpus: Path, folder: Path) -> None:
        import lancedb
        import pyarrow
        from lancedb.index import FTS

        schema = pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())])

        def batches() -> Iterator[Any]:
            rows: list[dict[str, Any]] = []
            for number, text in enumerate(_texts(corpus)):
                rows.append({"number": number, "text": text})
                if len(rows) == 10_000:
                    yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)
                    rows = []
            if rows:
                yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)

        reader = pyarrow.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(folder).create_table("passages", reader)
        config = FTS(language="English", stem=True, remove_stop_words=True, with_position=False)
        table.create_index("text", config=config)

    def open(self, folder: Path) -> None:
        import lancedb

        self._table = lancedb.connect(folder).open_table("passages")

    def search(self, query: str) -> list[Found]:
        from lancedb.query import MatchQuery

        found = self._table.search(MatchQuery(query, "text"), query_type="fts").limit(K)
        rows = found.select(["number", "text", "_score"]).to_list()
        return [(row["number"], row["text"]) for row in rows]

    def search_all(self, queries: Sequence[str]) -> list[list[Found]]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.search, queries))


class Tantivy:
    def _schema(self) -> Any:
        import tantivy

        builder = tantivy.SchemaBuilder()
        builder.add_integer_field("number", stored=True)
        builder.add_text_field("text", stored=True, tokenizer_name="en_stem", index_option="freq")
        return builder.build()

    def build(self, corpus: Path, folder: Path) -> None:
        import tantivy

        folder.mkdir(parents=True)
        index = tantivy.Index(self._schema(), path=str(folder))
        writer = index.writer(heap_size=512 << 20, num_threads=2)
        for number, text in enumerate(_texts(corpus)):
            writer.add_document(tantivy.Document(number=number, text=text))
        writer.commit()
        writer.wait_merging_threads()

    def open(self, folder: Path) -> None:
        import tantivy
        from bm25s.stopwords import STOPWORDS_EN

        self._stopwords = frozenset(STOPWORDS_EN)
        self._index = tantivy.Index.open(str(folder))
        self._searcher = self._index.searcher()

    def search(self, query: str) -> list[Found]:
        words = [w for w in re.findall(r"\w+", query.lower()) if w not in self._stopwords]
        parsed = self._index.parse_query(" ".join(words), ["text"])
        hits = self._searcher.search(parsed, K).hits
        rows = [self._searcher.doc(address) for _, address in hits]
        return [(row.get_first("number"), row.get_first("text")) for row in rows]

    def search_all(self, queries: Sequence[str]) -> list[list[Found]]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(self.search, queries))


ENGINES: dict[str, Callable[[], Any]] = {
    "steper": Steper,
    "bm25s": BM25s,
    "lancedb": LanceDB,
    "tantivy": Tantivy,
}


def _texts(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield f"{row['title']} {row['text']}"


# ---- measuring -----------------------------------------------------------------------------------


def measure_search(engine: Any, folder: Path, queries: Sequence[str]) -> dict[str, Any]:
    """What ``--search`` prints, in a process of its own."""
    engine.open(folder)
    for query in queries[:WARM_UP]:
        engine.search(query)
    times, best = [], []
    for query in queries:
        begin = time.perf_counter()
        found = engine.search(query)
        times.append(1000 * (time.perf_counter() - begin))
        best.append([number for number, _ in found])
    engine.search_all(queries[:WARM_UP])
    begin = time.perf_counter()
    engine.search_all(queries)
    seconds = time.perf_counter() - begin
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return {
        "query_p50_ms": float(p50),
        "query_p95_ms": float(p95),
        "queries_per_s": len(queries) / seconds,
        "best": best,
    }


def run_alone(arguments: Sequence[str], folder: Path) -> tuple[str, float, float]:
    """Run this file in a process of its own: its output, seconds, and peak memory in GB."""
    import psutil

    begin = time.perf_counter()
    # To a file: a pipe that nobody reads would stop the process when it is full.
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=output)
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            try:
                family = [tree, *tree.children(recursive=True)]
                peak = max(peak, sum(member.memory_info().rss for member in family))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed")
        output.seek(0)
        return output.read(), seconds, peak / 1e9


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of each engine."""
    figures: dict[str, dict[str, Any]] = {}
    for name in args.engines:
        shutil.rmtree(folder / name, ignore_errors=True)
        print(f"{name}: build", file=sys.stderr)
        _, seconds, peak = run_alone(["--build", name, "--folder", str(folder)], folder)
        files = (path for path in (folder / name).rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files)
        figures[name] = {"build_s": seconds, "peak_gb": peak, "disk_mb": size / 1e6}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in args.engines}
    for number in range(args.rounds):
        for name in args.engines:
            print(f"{name}: search, round {number + 1}", file=sys.stderr)
            output, _, _ = run_alone(["--search", name, "--folder", str(folder)], folder)
            rounds[name].append(json.loads(output.splitlines()[-1]))
    for name, results in rounds.items():
        for key in ("query_p50_ms", "query_p95_ms", "queries_per_s"):
            figures[name][key] = statistics.median(result[key] for result in results)
        if "bm25s" in rounds:
            pairs = zip(results[0]["best"], rounds["bm25s"][0]["best"], strict=True)
            figures[name]["same_top10"] = statistics.fmean(
                len(set(ours) & set(theirs)) / max(1, len(theirs)) for ours, theirs in pairs
            )
    return figures


def table(figures: dict[str, dict[str, Any]]) -> str:
    columns = next(iter(figures.values()))
    rows = [[name, *(f"{values[key]:.3g}" for key in columns)] for name, values in figures.items()]
    return tabulate(rows, headers=["", *columns], disable_numparse=True)


def parse(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    shared = os.environ.get("STEPER_SHARED_DATA", "../shared/data")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--data", type=Path, default=Path(shared))
    parser.add_argument("--folder", type=Path, help="where corpus and indexes go")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--search", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args(None if arguments is None else list(arguments))


def main() -> None:
    args = parse()
    if args.build:
        ENGINES[args.build]().build(args.folder / "corpus.jsonl", args.folder / args.build)
        return
    if args.search:
        queries = json.loads((args.folder / "queries.json").read_text(encoding="utf-8"))
        engine = ENGINES[args.search]()
        print(json.dumps(measure_search(engine, args.folder / args.search, queries)))
        return
    folder = args.folder or Path("runs/benchmarks/retrieval") / str(args.passages)
    folder.mkdir(parents=True, exist_ok=True)
    data = args.data if args.data.is_dir() else None
    questions = make_corpus(folder / "corpus.jsonl", args.passages, data)
    random.Random(1).shuffle(questions)
    queries = json.dumps(questions[: args.queries], ensure_ascii=False)
    (folder / "queries.json").write_text(queries, encoding="utf-8")
    figures = measure(args, folder)
    print(table(figures))
    if args.json:
        setting = {"passages": args.passages, "queries": args.queries, "data": str(data or "world")}
        args.json.write_text(json.dumps({"setting": setting, "engines": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
