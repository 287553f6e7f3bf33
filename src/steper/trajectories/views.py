"""One run or two, joined by question: chosen from by facet and by word, read in pages.

What the page of ``steper trajectories`` shows, as plain data, so that it can be tested without one.

>>> Runs([Path("runs/eval")]).page({"outcome": ["wrong"]}, "hee haw", 1)["total"]  # doctest: +SKIP
3
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steper.errors import SteperError
from steper.trajectories.runs import Row, RunFolder, overlay, tell_apart

PAGE_ROWS = 50
OUTCOMES = {
    "right": "right",
    "wrong": "wrong",
    "none": "no answer",
    "failed": "failed",
    "unreadable": "unreadable",
    "absent": "not in this run",
}
ENDINGS = {
    "answer": "it answered",
    "limit": "last step allowed",
    "stuck": "went in a circle",
    "budget": "used up its budget",
}


class Entry(NamedTuple):
    """One line of the list: the runs' trajectories on one question.

    Attributes:
        kind: index of its values in ``Runs.kinds``.
    """

    id: str
    rows: tuple[Row | None, ...]
    kind: int

    def says(self, words: Sequence[str]) -> bool:
        """Whether every word stands in the question or an answer; words are casefolded."""
        parts = [part for r in self.rows if r for part in (r.question, r.gold, r.answer, r.id)]
        text = "\n".join(parts).casefold()
        return all(word in text for word in words)


Values = dict[str, str]
"""An entry's value in each facet that applies to it."""


class Runs:
    """One run or two, joined by question, to be filtered and read in pages. Safe among threads.

    Attributes:
        entries: all, in the order of the first run, then those of the second run only.
        kinds: the combinations of values that occur. They are few, so that counting them is quick.

    Raises:
        SteperError: if a folder holds no trajectories, or the build read none of these runs.
    """

    def __init__(self, folders: Sequence[Path], *, build: Path | None = None) -> None:
        if not 1 <= len(folders) <= 2:
            raise SteperError(
                f"{len(folders)} runs are given; the page shows one, or two side by side.",
                where="trajectories RUN [OTHER]",
                fix="Name folders made by `steper rollout` or `steper evaluate`.",
            )
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise SteperError("is given twice.", where=str(folders[0]), fix="Name each run once.")
        self.runs = [RunFolder(folder) for folder in folders]
        tell_apart(self.runs)
        self.entries: list[Entry] = []
        self.kinds: list[Values] = []
        self._lock = threading.Lock()
        self.refresh()
        if build is not None:
            overlay(self.runs, build)
            self._join()

    def refresh(self) -> None:
        """Take in what the runs have written since."""
        with self._lock:
            if any([run.refresh() for run in self.runs]):
                self._join()

    @property
    def title(self) -> str:
        """The runs' labels."""
        return " beside ".join(run.label for run in self.runs)

    def _join(self) -> None:
        kinds: dict[tuple[tuple[str, str], ...], int] = {}
        self.entries = []
        for key, rows in self._pairs():
            values = tuple(self._values(rows).items())
            self.entries.append(Entry(key, rows, kinds.setdefault(values, len(kinds))))
        self.kinds = [dict(values) for values in kinds]
        self._at = {entry.id: n for n, entry in enumerate(self.entries)}

    def _pairs(self) -> Iterator[tuple[str, tuple[Row | None, ...]]]:
        """The same sample of the same question; where one run has fewer samples, its first."""
        if len(self.runs) == 1:
            yield from ((row.id, (row,)) for row in self.runs[0].rows.values())
            return
        first, second = (run.rows for run in self.runs)
        for row in first.values():
            yield row.id, (row, second.get(row.id) or second.get(row.question_id))
        for row in second.values():
            if row.id not in first:
                yield row.id, (first.get(row.question_id), row)

    def _values(self, rows: tuple[Row | None, ...]) -> Values:
        values: Values = {"type": next(row for row in rows if row).type}
        for run, row, n in zip(self.runs, rows, ("", "2"), strict=False):
            values[f"outcome{n}"] = row.outcome if row else "absent"
            if row and row.stopped:
                values[f"steps{n}"], values[f"stopped{n}"] = str(row.steps), row.stopped
            if row and (verdict := run.verdict(row)):
                values[f"verdict{n}"] = (
                    f"dropped by {verdict['filter']}" if verdict["filter"] else "kept"
                )
        right = [row.outcome == "right" for row in rows if row is not None]
        if len(right) == 2:
            values["compare"] = {
                (True, True): "both",
                (True, False): "first",
                (False, True): "second",
                (False, False): "neither",
            }[right[0], right[1]]
        return values

    def facets(self) -> dict[str, dict[str, Any]]:
        """What can be chosen: by name its legend, whether it is rare, the label of each value."""
        seen: dict[str, set[str]] = {}
        for kind in self.kinds:
            for name, value in kind.items():
                seen.setdefault(name, set()).add(value)
        first, second = self.runs[0].label, self.runs[-1].label
        compare = {
            "first": f"only {first} right",
            "second": f"only {second} right",
            "both": "both right",
            "neither": "neither right",
        }
        order: dict[str, tuple[str, dict[str, str]]] = {"compare": ("Side by side", compare)}
        for title, name, labels in (
            ("Answer", "outcome", OUTCOMES),
            ("Filters", "verdict", {"kept": "kept"}),
            ("Type", "type", {}),
            ("Steps", "steps", {}),
            ("Ended", "stopped", ENDINGS),
        ):
            for run, n in zip(self.runs, ("", "2"), strict=False):
                own = len(self.runs) == 2 and name != "type"
                order[name + n] = (f"{title}: {run.label}" if own else title, labels)
        return {
            name: {
                "legend": legend,
                "rare": name.startswith(("steps", "stopped")),
                "labels": _labels(name, labels, seen[name]),
            }
            for name, (legend, labels) in order.items()
            if name in seen
        }

    def page(self, chosen: Mapping[str, Sequence[str]], text: str, number: int) -> dict[str, Any]:
        """One page of the list, and the count beside each choice.

        A choice's count is what it would show together with all that is chosen in other facets.

        Args:
            chosen: by facet the values wanted, any of them.
            text: words that must all stand in the question or an answer.
            number: of the page, from 1; beyond the last, the last.

        Raises:
            SteperError: if there is no such facet.
        """
        self.refresh()
        with self._lock:
            facets = self.facets()
            for name in chosen:
                if name not in facets:
                    raise SteperError(f"there is no choice {name!r} in these runs.")
            words = text.casefold().split()
            entries = [e for e in self.entries if e.says(words)] if words else self.entries
            shown, counts = self._count(Counter(entry.kind for entry in entries), chosen)
            found = [entry for entry in entries if entry.kind in shown]
            pages = max(1, -(-len(found) // PAGE_ROWS))
            number = min(number, pages)
            for name, facet in facets.items():
                facet["counts"] = {v: counts[name, v] for v in facet["labels"]}
            return {
                "runs": [self._about(n) for n in range(len(self.runs))],
                "all": len(self.entries),
                "total": len(found),
                "page": number,
                "pages": pages,
                "first": (number - 1) * PAGE_ROWS + 1,
                "rows": [_summary(e) for e in found[(number - 1) * PAGE_ROWS : number * PAGE_ROWS]],
                "facets": facets,
            }

    def _count(
        self, sizes: Mapping[int, int], chosen: Mapping[str, Sequence[str]]
    ) -> tuple[set[int], Counter[tuple[str, str]]]:
        """The kinds that fit what is chosen, and the count of each facet's values."""
        shown: set[int] = set()
        counts: Counter[tuple[str, str]] = Counter()
        for kind, size in sizes.items():
            values = self.kinds[kind]
            missed = [name for name, wanted in chosen.items() if values.get(name) not in wanted]
            if not missed:
                shown.add(kind)
                counts.update({item: size for item in values.items()})
            elif len(missed) == 1 and missed[0] in values:
                counts[missed[0], values[missed[0]]] += size
        return shown, counts

    def _about(self, n: int) -> dict[str, Any]:
        """A run as the page's head shows it."""
        run = self.runs[n]
        outcomes = Counter(row.outcome for row in run.rows.values())
        return {
            "label": run.label,
            "stage": run.stage,
            "running": run.running,
            "outcomes": {o: [label, outcomes[o]] for o, label in OUTCOMES.items() if outcomes[o]},
            "problems": run.problems,
        }

    def view(self, key: str) -> dict[str, Any] | None:
        """Everything about one entry; ``None`` if there is none of this id."""
        with self._lock:
            if key not in self._at:
                return None
            sides = []
            for run, row in zip(self.runs, self.entries[self._at[key]].rows, strict=True):
                sides.append(run.side(row) if row else None)
            return {"id": key, "sides": sides}

    def embedded(self, limit: int) -> dict[str, Any]:
        """What the page needs to show the first entries without a server."""
        page = self.page({}, "", 1)
        entries = self.entries[:limit]
        rows = [_summary(e) | {"values": self.kinds[e.kind]} for e in entries]
        views = {entry.id: self.view(entry.id) for entry in entries}
        return page | {"rows": rows, "views": views, "per_page": PAGE_ROWS}


def _labels(name: str, known: Mapping[str, str], seen: set[str]) -> dict[str, str]:
    """The label of each value seen, in the order to show."""
    if name.startswith("steps"):
        return {value: value for value in sorted(seen, key=int)}
    labels = {value: label for value, label in known.items() if value in seen}
    return labels | {value: value or "(none)" for value in sorted(seen - labels.keys())}


def _summary(entry: Entry) -> dict[str, Any]:
    known = next(row for row in entry.rows if row is not None)
    sides = [
        row and {"outcome": row.outcome, "answer": row.answer, "steps": row.steps}
        for row in entry.rows
    ]
    return {
        "id": entry.id,
        "question": known.question,
        "gold": known.gold,
        "type": known.type,
        "sides": sides,
    }
