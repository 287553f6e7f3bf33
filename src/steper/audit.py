"""The token audit: examples become token ids, and whatever would spoil a training is counted first.

Silent masking is how fine-tuning fails: a loss of 0.0 because every target was cut away, a prompt
worded as the student will never be asked. Each such example is found before any weight is loaded,
shown, and stops the run unless it was allowed by name.

>>> data, audit = encode(examples, tokenizer, template=t, max_length=4096)  # doctest: +SKIP
>>> print(audit.table())  # doctest: +SKIP
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tabulate import tabulate
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from steper.batches import Encoded
from steper.errors import SteperError
from steper.packing import unique_tokens
from steper.prompts import Template
from steper.types import TASKS, StepExample

Finding = Literal["truncated", "fully-masked", "empty-target", "template-mismatch"]

MEANING: dict[Finding, str] = {
    "truncated": "longer than {limit} tokens, the end of the target would be cut off",
    "fully-masked": "the prompt alone fills {limit} tokens, no target would be left",
    "empty-target": "nothing could be learned from it",
    "template-mismatch": "the prompt is not worded as the student will be asked (setting.json)",
}
_SHORTER = "Raise --max-length to {longest}, or roll out with a smaller --k or --max-steps"
_FIXED = "The model has no more positions: roll out with a smaller --k or --max-steps"
REMEDY: dict[Finding, str] = {
    "truncated": _SHORTER,
    "fully-masked": _SHORTER,
    "empty-target": "Filter steps without reasoning",
    "template-mismatch": "Build the data again with the wording of its rollout",
}


@dataclass(slots=True)
class Audit:
    """What was found.

    Attributes:
        limit: most tokens of an example.
        fixed: whether that is the most that the model takes.
        longest: tokens of the longest example, before anything was cut.
        examples: kept, by task.
        trajectories: those with an example left.
        tokens: of all kept examples.
        unique: tokens of each trajectory's trie, all together.
        targets: target tokens of all kept examples.
        findings: for each kind the ids of its examples.
    """

    limit: int
    fixed: bool = False
    longest: int = 0
    examples: list[int] = field(default_factory=lambda: [0, 0, 0])
    trajectories: int = 0
    tokens: int = 0
    unique: int = 0
    targets: int = 0
    findings: dict[Finding, list[str]] = field(default_factory=dict)

    def table(self) -> str:
        """The audit as a table for people."""
        share = self.unique / max(1, self.tokens)
        rows = [
            ("trajectories", f"{self.trajectories:,}"),
            *((f"{t} examples", f"{n:,}") for t, n in zip(TASKS, self.examples, strict=True)),
            ("longest example", f"{self.longest:,} tokens (limit {self.limit:,})"),
            ("tokens", f"{self.tokens:,}, of which targets {self.targets:,}"),
            (
                "unique tokens",
                f"{self.unique:,} ({share:.0%}): --packing trie skips {1 - share:.0%}",
            ),
        ]
        rows += [(name, f"{len(ids):,}, such as {ids[0]}") for name, ids in self.findings.items()]
        return tabulate(rows, disable_numparse=True)

    def require(self, allow: Sequence[Finding], *, where: str) -> None:
        """Stop unless every kind of finding is allowed.

        Raises:
            SteperError: naming the kinds, an example of each, and the remedy.
        """
        refused = [name for name in self.findings if name not in allow]
        if not refused:
            return
        shown = [
            f"{len(self.findings[name]):,} {name} (such as {self.findings[name][0]}: "
            f"{MEANING[name].format(limit=self.limit)})"
            for name in refused
        ]
        remedies = [REMEDY[name] for name in refused]
        if self.fixed:
            remedies = [_FIXED if remedy == _SHORTER else remedy for remedy in remedies]
        fixes = dict.fromkeys(remedy.format(longest=self.longest) for remedy in remedies)
        raise SteperError(
            f"the token audit stops the run: {'; '.join(shown)}.",
            where=where,
            fix=f"{'. '.join(fixes)}. Or go on regardless with --allow {' '.join(refused)}.",
        )


def encode(
    examples: Sequence[StepExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template,
    max_length: int,
    positions: int | None = None,
) -> tuple[list[list[Encoded]], Audit]:
    """Tokenise examples, group them by trajectory, and count what is wrong with them.

    Prompt and target are tokenised apart, as at inference, where the prompt comes alone. Only the
    aggregation target ends with the end-of-sequence token: a newline ends a step, the token ends
    the run. Were it taught after every step, a step whose search brought nothing new would have
    the prompt of the step before it and the opposite target, "stop" against "go on".

    Args:
        examples: in any order.
        tokenizer: the student's.
        template: how the student will be asked.
        max_length: most tokens of an example.
        positions: most tokens that the model takes, ``None`` where it sets no limit.

    Returns:
        The trajectories in the order of the file, examples with empty or fully masked targets left
        out and truncated ones cut at ``max_length``; and the audit.
    """
    fixed = positions is not None and positions < max_length
    max_length = min(max_length, positions or max_length)
    audit = Audit(limit=max_length, fixed=fixed)
    groups: dict[str, list[Encoded]] = {}
    for example, encoded in zip(examples, _encoded(examples, tokenizer), strict=True):
        audit.longest = max(audit.longest, len(encoded.ids))
        found = _findings(example, encoded, template, max_length)
        for finding in found:
            audit.findings.setdefault(finding, []).append(example.id)
        if "empty-target" in found or "fully-masked" in found:
            continue
        cut = encoded._replace(ids=encoded.ids[:max_length])
        groups.setdefault(example.trajectory_id, []).append(cut)
        audit.examples[cut.task] += 1
        audit.tokens += len(cut.ids)
        audit.targets += len(cut.ids) - cut.prompt
    audit.trajectories = len(groups)
    audit.unique = sum(unique_tokens([e.ids for e in group]) for group in groups.values())
    return list(groups.values()), audit


def _encoded(
    examples: Sequence[StepExample], tokenizer: PreTrainedTokenizerBase, *, size: int = 512
) -> Iterator[Encoded]:
    """Token ids of each example, 4 bytes a token."""
    bar = tqdm(total=len(examples), unit="example", desc="tokenise", leave=False)
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        prompts = tokenizer([e.prompt for e in part])["input_ids"]
        targets = tokenizer([e.target for e in part], add_special_tokens=False)["input_ids"]
        for example, prompt, target in zip(part, prompts, targets, strict=True):
            end = [tokenizer.eos_token_id] if target and example.task == "aggregation" else []
            ids = array("i", [*prompt, *target, *end])
            yield Encoded(ids, len(prompt), TASKS.index(example.task), example.id)
        bar.update(len(part))
    bar.close()


def _findings(
    example: StepExample, encoded: Encoded, template: Template, max_length: int
) -> list[Finding]:
    found: list[Finding] = []
    if encoded.prompt == len(encoded.ids) or not example.target.strip():
        found.append("empty-target")
    elif encoded.prompt >= max_length:
        found.append("fully-masked")
    elif len(encoded.ids) > max_length:
        found.append("truncated")
    if not template.matches(example.prompt):
        found.append("template-mismatch")
    return found
