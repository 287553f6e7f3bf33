"""Prefill what is new of each prompt, then write the sentences of a batch together.

What the prefix tree has of a prompt is copied to its row, the rest is prefilled there, one row at
a time, so nothing is padded. Sentences are then written in step; a row that is done makes room.

>>> decoder = Decoder(model, ends=is_line, eos=frozenset({2}), kept_bytes=2**30)  # doctest: +SKIP
>>> decoder.write([draft := Draft([5, 6, 7], "run", seed=0)], Sampling())  # doctest: +SKIP
>>> draft.written  # doctest: +SKIP
[8, 9, 10]
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from transformers import PreTrainedModel

from steper.lm.prefix import PrefixTree
from steper.lm.rows import Rows, read, tried_cache
from steper.protocols import Sampling


@dataclass(slots=True, eq=False)
class Draft:
    """A sentence under way.

    Attributes:
        prompt: token ids.
        run: whose prefixes it extends.
        seed: of its draws.
        cached: prompt tokens that were not prefilled for it.
        written: token ids, without the end of sequence.
    """

    prompt: list[int]
    run: str
    seed: int
    cached: int = 0
    written: list[int] = field(default_factory=list)


def draw(logits: torch.Tensor, drafts: Sequence[Draft], sampling: Sampling) -> list[int]:
    """One token for each draft.

    Each draw takes one number that depends on the draft's seed and length only, so it is the same
    in any batch.

    Args:
        logits: (drafts, vocabulary).
        drafts: one per row.
        sampling: greedy where the temperature is 0.
    """
    if sampling.temperature == 0:
        return cast(list[int], logits.argmax(-1).tolist())
    shares, order = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    below = shares.cumsum(-1) - shares
    shares = shares.where(below < sampling.top_p, 0)  # the fewest tokens that make up top_p
    chances = [random.Random(f"{d.seed}/{len(d.written)}").random() for d in drafts]
    level = shares.sum(-1) * torch.tensor(chances, device=shares.device)
    # Rounding may put the level at the very end; the last token drawn from is the answer then.
    last = (shares > 0).sum(-1) - 1
    place = (shares.cumsum(-1) <= level[:, None]).sum(-1).minimum(last)
    return cast(list[int], order.gather(-1, place[:, None])[:, 0].tolist())


class Decoder:
    """Writes sentences, and keeps the prefixes of their prompts.

    Args:
        model: one that ``obstacle`` finds nothing against.
        ends: whether a sentence of these tokens is complete.
        eos: the tokens that end a sequence.
        kept_bytes: most memory for what is kept between calls.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        ends: Callable[[list[int]], bool],
        eos: frozenset[int],
        kept_bytes: int,
    ) -> None:
        self._model, self._ends, self._eos = model, ends, eos
        self._like = tried_cache(model)
        token_bytes = Rows(self._like, rows=1, columns=1).bytes
        self.tree = PrefixTree(limit=kept_bytes // token_bytes)

    @torch.inference_mode()
    def write(self, drafts: Sequence[Draft], sampling: Sampling) -> None:
        """Fill in ``written`` and ``cached``."""
        width = max(len(draft.prompt) for draft in drafts)
        # Candidates of one step, and first steps of several runs on a question, share a prompt.
        groups: dict[tuple[int, ...], list[Draft]] = {}
        for draft in drafts:
            groups.setdefault(tuple(draft.prompt), []).append(draft)
        active = [draft for group in groups.values() for draft in group]
        rows = Rows(self._like, len(active), width + sampling.max_tokens)
        at, logits = 0, []
        for group in groups.values():
            logits.append(self._prefill(rows, at, width, group).expand(len(group), -1))
            at += len(group)
        self._decode(rows, width, active, torch.cat(logits), sampling)
        self.tree.trim()

    def _prefill(self, rows: Rows, row: int, width: int, group: Sequence[Draft]) -> torch.Tensor:
        """Fill the group's rows, the first of which is ``row``; the next token's logits (1, V)."""
        prompt, run = group[0].prompt, group[0].run
        begin = end = width - len(prompt)
        for node in self.tree.find(prompt, run):
            rows.put(row, end, node.states)
            end += len(node.tokens)
        # The last token is always prefilled, because its logits are not kept.
        cached = min(end - begin, len(prompt) - 1)
        logits = read(
            self._model,
            [prompt[cached:]],
            rows.look(slice(row, row + 1), begin, begin + cached),
            torch.arange(cached, len(prompt))[None],
        )
        for number, draft in enumerate(group):
            draft.cached = len(prompt) if number else cached
            if number:
                rows.put(row + number, begin, rows.get(row, begin, width))
            self.tree.keep(
                prompt, draft.run, lambda one, other: rows.get(row, begin + one, begin + other)
            )
        return logits

    def _decode(
        self,
        rows: Rows,
        width: int,
        active: list[Draft],
        logits: torch.Tensor,
        sampling: Sampling,
    ) -> None:
        for column in range(width, width + sampling.max_tokens):
            tokens = draw(logits, active, sampling)
            going = []
            for draft, token in zip(active, tokens, strict=True):
                if token not in self._eos:
                    draft.written.append(token)
                full = len(draft.written) == sampling.max_tokens
                going.append(not (token in self._eos or full or self._ends(draft.written)))
            for row in reversed(range(len(active))):
                if not going[row]:
                    self._leave(rows, width, column, active, row)
            if not active:
                return
            logits = self._next(rows, width, column, active)

    def _leave(self, rows: Rows, width: int, column: int, active: list[Draft], row: int) -> None:
        """Keep a finished row, and let the last one take its place."""
        draft, last = active[row], active.pop()
        begin = width - len(draft.prompt)
        # The last token written was not read again, so it has no keys and values yet.
        text = draft.prompt + draft.written[: column - width]
        self.tree.keep(
            text, draft.run, lambda one, other: rows.get(row, begin + one, begin + other)
        )
        if last is not draft:
            active[row] = last
            begin = width - len(last.prompt)
            rows.put(row, begin, rows.get(len(active), begin, column))

    def _next(self, rows: Rows, width: int, column: int, active: list[Draft]) -> torch.Tensor:
        """Read each draft's last token; the next one's logits (drafts, V)."""
        begins = torch.tensor([width - len(draft.prompt) for draft in active])
        first = int(begins.min())
        shown = torch.arange(first, column + 1)[None] >= begins[:, None]
        return read(
            self._model,
            [draft.written[-1:] for draft in active],
            rows.look(slice(0, len(active)), first, column),
            (column - begins)[:, None],
            None if shown.all() else shown.long(),
        )
