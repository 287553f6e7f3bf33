"""What rollouts cost when every passage is prefilled once: `steper` beside the usual loop.

    python benchmarks/rollout.py --quick                 # a minute or two on two cores
    python benchmarks/rollout.py --json rollout.json     # hidden size 512, 8 layers
    python benchmarks/rollout.py --layout interleaved --device cuda

The same random Llama-shaped model answers the same questions in S steps, each of which brings K
new passages of about 130 tokens and writes a sentence of 25:

==============  =================================================================================
steper          the driver and ``LocalLM``: prefixes are kept from step to step
no_reuse        the same with ``reuse=False``: whole prompts, in padded batches
flashrag_style  FlashRAG's IRCoT loop, made anew from its description: at each step all passages
                so far are sorted by their scores, and the whole prompt is prefilled again, in
                padded batches of ``transformers``' ``generate``
==============  =================================================================================

All three get the same passages at each step; scores are drawn at random. The first two see the
same prompts and must write the same texts (``outputs_equal``). ``flashrag_style`` sees its passages
in another order, so what it writes differs; in length it does not, because the model cannot write
a newline. Contenders take turns, so that whatever else the machine does meets all of them;
``wall_speedup`` is the median over the turns of ``flashrag_style``'s time over ``steper``'s. The
first turn is warm-up, with a question or two.

``prefilled_over_unique`` compares the tokens that ``steper`` prefilled with those of each
question's last prompt, which holds all its passages and sentences: 1 is what a loop that never
prefills a token twice would come to. An instruction common to all questions makes it smaller.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steper.driver import run
from steper.prompts import first_sentence
from steper.protocols import LM, Completion, Request, Sampling
from steper.setting import Setting
from steper.templates import load_template
from steper.types import Passage, Question, Trajectory

CONTENDERS = ("steper", "no_reuse", "flashrag_style")
MODELS = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "base": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
}
PASSAGE, SENTENCE, VOCABULARY = 130, 25, 8192
"""Tokens of a passage and of a sentence, and words of the model."""


# ---- the same for all ---------------------------------------------------------------------------


def words(rng: random.Random, mean: int) -> str:
    count = mean + rng.randrange(-mean // 5, mean // 5)
    return " ".join(f"w{rng.randrange(VOCABULARY - 1000)}" for _ in range(count))


class Drawn:
    """A retriever that makes up the passages of a query, the same ones each time."""

    def __init__(self) -> None:
        self.scores: dict[str, float] = {}

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self._passages(query, k) for query in queries]

    def _passages(self, query: str, k: int) -> list[Passage]:
        name = hashlib.sha256(query.encode()).hexdigest()[:12]
        rng = random.Random(name)
        found = []
        for score in sorted((rng.random() for _ in range(k)), reverse=True):
            # The title and the template's own words are part of the tokens.
            found.append(Passage(f"{name}-{len(found)}", words(rng, 5), words(rng, PASSAGE - 7)))
            self.scores[found[-1].id] = score
        return found


def save_model(folder: Path, shape: dict[str, int], setting: Setting, device: str) -> None:
    """Write a random model that knows one token per word, and writes nothing but such words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    wording = setting.template.render("", [[Passage("", "", "")]], [], final=True)
    own = dict.fromkeys(
        ["<pad>", "<eos>", "\n", *(word for word, _ in split.pre_tokenize_str(wording))]
    )
    vocabulary = [*own, *(f"w{number}" for number in range(VOCABULARY - len(own)))]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<eos>"))
    tokenizer.pre_tokenizer = split
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        intermediate_size=8 * shape["hidden_size"] // 3,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        max_position_embeddings=16384,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.1,  # words that depend on what was read
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        **shape,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Logit 0, where thousands of words have a random one: a sentence has its full length.
        model.lm_head.weight[: len(own)] = 0
    if device == "cuda":
        model.to(torch.bfloat16)
    model.save_pretrained(folder)


@dataclass
class Tally:
    """What a contender did in all its turns but the first."""

    seconds: list[float] = field(default_factory=list)
    prefilled: int = 0
    unique: int = 0
    equal: bool = True

    def add(self, seconds: float, prefilled: int, unique: int = 0, equal: bool = False) -> None:
        self.seconds.append(seconds)
        self.prefilled += prefilled
        self.unique += unique
        self.equal &= equal


# ---- the contenders -----------------------------------------------------------------------------


@dataclass
class Counted:
    """A language model whose prefilled tokens are counted."""

    lm: LM
    prefilled: int = 0
    unique: int = 0

    async def complete(self, request: Request) -> Completion:
        answer = await self.lm.complete(request)
        self.prefilled += answer.usage.prompt_tokens - answer.usage.cached_tokens
        if request.final:
            self.unique += answer.usage.prompt_tokens
        return answer


def ours(lm: Counted, retriever: Drawn, setting: Setting, questions: list[Question]) -> Any:
    return {
        done.id: done
        for done in run(
            questions, setting=setting, retriever=retriever, lm=lm, in_flight=len(questions)
        )
    }


def flashrag_style(
    lm: Any, batch: int, setting: Setting, scores: dict[str, float], found: list[Trajectory]
) -> tuple[dict[str, list[str]], int]:
    """Texts by question, and how many tokens were prefilled, padding not counted."""
    import torch

    written: dict[str, list[str]] = {done.id: [] for done in found}
    prefilled = 0
    lm.tokenizer.padding_side = "left"
    for step in range(1, setting.max_steps + 1):
        prompts = {}
        for done in found:
            passages = [passage for some in done.steps[:step] for passage in some.passages]
            passages.sort(key=lambda passage: -scores[passage.id])
            prompts[done.id] = setting.template.render(
                done.question.question,
                [passages],
                written[done.id],
                final=step == setting.max_steps,
            )
        for start in range(0, len(found), batch):
            names = list(prompts)[start : start + batch]
            inputs = lm.tokenizer(
                [prompts[name] for name in names], return_tensors="pt", padding=True
            ).to(lm.model.device)
            prefilled += int(inputs["attention_mask"].sum())
            with torch.inference_mode():
                output = lm.model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=SENTENCE,
                    do_sample=False,
                )
            new = output[:, inputs["input_ids"].shape[1] :]
            for name, text in zip(names, lm.tokenizer.batch_decode(new), strict=True):
                written[name].append(first_sentence(text))
    return written, prefilled


# ---- the race -----------------------------------------------------------------------------------


def race(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from steper.lm.local import LocalLM

    template = load_template("ircot")
    setting = Setting("ircot", template.laid_out(args.layout), k=args.k, max_steps=args.steps)
    save_model(folder, MODELS[args.model], setting, args.device)
    kept, whole = (
        LocalLM(
            folder,
            device=args.device,
            sampling=Sampling(max_tokens=SENTENCE),
            batch_size=args.batch,
            reuse=reuse,
        )
        for reuse in (True, False)
    )
    tallies = {name: Tally() for name in CONTENDERS}
    for number in range(args.repeats + 1):
        count = args.questions if number else min(args.questions, 2)
        names = [f"{number}-{n}" for n in range(count)]
        questions = [Question(name, words(random.Random(name), 40), "") for name in names]
        turn(args, setting, (kept, whole), questions, tallies if number else None)
        shown = ", ".join(f"{n} {sum(t.seconds):.1f} s" for n, t in tallies.items())
        print(f"\r{number}/{args.repeats}: {shown:<70}", end="", file=sys.stderr, flush=True)
    print(f"\r{'':<76}\r", end="", file=sys.stderr)
    return figures(args, tallies)


def turn(
    args: argparse.Namespace,
    setting: Setting,
    lms: tuple[Any, Any],
    questions: list[Question],
    tallies: dict[str, Tally] | None,
) -> None:
    """Let every contender answer the questions; ``None`` to warm up."""
    from steper.lm.prefix import PrefixTree

    kept, whole = lms
    kept.decoder.tree = PrefixTree(kept.decoder.tree.limit)  # nothing of the turn before
    retriever, counted, plain = Drawn(), Counted(kept), Counted(whole)
    own, found = timed(lambda: ours(counted, retriever, setting, questions), args.device)
    again, same = timed(lambda: ours(plain, retriever, setting, questions), args.device)
    # The peer knows one layout only.
    grouped = replace(setting, template=setting.template.laid_out("grouped"))
    theirs, (texts, prefilled) = timed(
        lambda: flashrag_style(whole, args.batch, grouped, retriever.scores, list(found.values())),
        args.device,
    )
    lengths = {len(text.split()) for said in texts.values() for text in said}
    lengths |= {len(s.reasoning.split()) for t in found.values() for s in t.steps[:-1]}
    if lengths != {SENTENCE}:
        raise SystemExit(f"sentences must have {SENTENCE} words, but have {lengths}")
    if tallies:
        tallies["steper"].add(own, counted.prefilled, counted.unique)
        tallies["no_reuse"].add(again, plain.prefilled, equal=same == found)
        tallies["flashrag_style"].add(theirs, prefilled)


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def figures(args: argparse.Namespace, tallies: dict[str, Tally]) -> dict[str, Any]:
    """What ``--json`` writes."""

    def speedup(name: str) -> float:
        pairs = zip(tallies[name].seconds, tallies["steper"].seconds, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    questions = args.repeats * args.questions
    unique = tallies["steper"].unique
    numbers = {
        "prefilled_over_unique": tallies["steper"].prefilled / unique,
        "wall_speedup": speedup("flashrag_style"),
        "wall_speedup_over_no_reuse": speedup("no_reuse"),
        "unique_tokens_per_question": unique / questions,
    }
    for name, tally in tallies.items():
        numbers[f"{name}_prefilled_per_question"] = tally.prefilled / questions
        numbers[f"{name}_seconds_per_question"] = statistics.median(tally.seconds) / args.questions
    rounded: dict[str, Any] = {name: float(f"{value:.4g}") for name, value in numbers.items()}
    settings = (
        "model",
        "layout",
        "steps",
        "k",
        "questions",
        "batch",
        "repeats",
        "device",
        "threads",
    )
    return (
        {"outputs_equal": tallies["no_reuse"].equal}
        | rounded
        | {name: getattr(args, name) for name in settings}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small model, fewer turns")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--layout", choices=["grouped", "interleaved"], default="grouped")
    parser.add_argument("--steps", type=int, default=5, help="S")
    parser.add_argument("--k", type=int, default=4, help="K, new passages a step")
    parser.add_argument("--questions", type=int, default=8, help="under way together, a turn")
    parser.add_argument("--batch", type=int, default=8, help="sentences written together")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.quick:
        args.model, args.questions, args.repeats = "small", 6, 2
    import torch
    from tabulate import tabulate
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = race(args, Path(folder))
    rows = [
        [name, result[f"{name}_prefilled_per_question"], result[f"{name}_seconds_per_question"]]
        for name in CONTENDERS
    ]
    print(tabulate(rows, headers=["", "tokens prefilled", "seconds"]), "(a question)\n")
    for name, value in result.items():
        if not name.endswith("per_question"):
            print(f"  {name}: {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
