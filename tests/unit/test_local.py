"""The in-process model: kept prefixes and batches change nothing but how much is prefilled."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from models import save_tiny_model, tiny_tokenizer
from steper.errors import CompletionError, SteperError
from steper.lm.decoding import Draft, draw
from steper.lm.local import LocalLM
from steper.lm.rows import obstacle
from steper.models import BASE_READERS
from steper.protocols import Completion, Request, Sampling, Turn
from steper.types import Question, Step

INSTRUCTION = "Answer the question by reasoning.\nQuestion: "
WORDS = [
    "amber",
    "harbor",
    "film",
    "silver",
    "director",
    "born",
    "city",
    "of",
    "the",
    "was",
    "river",
]
SAMPLING = Sampling(max_tokens=10)
READER_PROMPT = (
    "Question: Who directed Silver Harbor?\n"
    "Passage: Silver Harbor. Silver Harbor is a film directed by Amber Quill.\nReasoning:\n"
)


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(low, high)))


TOKENIZER = tiny_tokenizer([INSTRUCTION, *(words(random.Random(n), 20, 60) for n in range(60))])
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # words that depend on what was read
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CUT = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=24),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        tie_word_embeddings=False,  # or it says the last word again and again
    ),
}
"""Models whose cache can be cut, two of them with windows much shorter than the prompts."""

UNCUT: dict[str, tuple[PreTrainedConfig, str]] = {
    "mamba": (
        MambaConfig(**{k: SHAPE[k] for k in ("vocab_size", "hidden_size", "eos_token_id")}),
        "past_key_values",
    ),
    "lfm2": (Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"] * 2), "LinearAttention"),
    "qwen3-next": (Qwen3NextConfig(**SHAPE, num_experts=4, num_experts_per_tok=2), "state"),
    "llama4": (Llama4TextConfig(**SHAPE, attention_chunk_size=32, num_local_experts=2), "chunks"),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, PreTrainedConfig], Path]:
    """Write a random model of a shape, once."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str, config: PreTrainedConfig) -> Path:
        if not (root / name).exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
            TOKENIZER.save_pretrained(root / name)
        return root / name

    return save


@pytest.fixture
def llama(save: Callable[[str, PreTrainedConfig], Path]) -> Path:
    return save("llama", CUT["llama"])


@dataclass
class Walk:
    """What one question's steps were asked and answered."""

    prompts: list[str] = field(default_factory=list)
    answers: list[list[Completion]] = field(default_factory=list)

    @property
    def texts(self) -> list[list[str]]:
        return [[answer.text for answer in step] for step in self.answers]


def request(prompt: str, run: str = "q", *, step: int = 0, **more: Any) -> Request:
    steps = (Step("", (), ""),) * step
    turns = (Turn("user", prompt), Turn("assistant", ""))
    return Request(turns, Question(run, "Who?", "A"), steps, (), more.pop("final", False), **more)


def ask(lm: LocalLM, *requests: Request) -> list[Completion]:
    async def both() -> list[Completion]:
        return list(await asyncio.gather(*map(lm.complete, requests)))

    return asyncio.run(both())


def walk_all(
    lm: LocalLM, layout: str, *, runs: int = 4, steps: int = 4, candidates: int = 2, fewest: int = 0
) -> list[Walk]:
    """Several questions under way at once, as the driver asks; passages differ in length."""

    async def walk(number: int) -> Walk:
        rng, done = random.Random(number), Walk()
        passages: list[list[str]] = []
        written: list[str] = []
        for step in range(steps):
            new = rng.randrange(max(fewest, step == 0), 3)
            passages.append([f"Passage: {words(rng, 8, 25)}" for _ in range(new)])
            if layout == "grouped":
                lines = [*chain.from_iterable(passages), "Reasoning:", *written]
            else:
                lines = []
                for at, some in enumerate(passages):
                    lines += [*some, "Reasoning:", *written[at : at + 1]]
            prompt = "\n".join([f"{INSTRUCTION}{words(random.Random(-1 - number), 5, 9)}", *lines])
            asked = [
                request(prompt + "\n", f"{number}", step=step, candidate=c, final=step + 1 == steps)
                for c in range(candidates)
            ]
            answers = list(await asyncio.gather(*map(lm.complete, asked)))
            done.prompts.append(prompt + "\n")
            done.answers.append(answers)
            written.append(" ".join(answers[step % candidates].text.split()))
        return done

    async def walks() -> list[Walk]:
        return list(await asyncio.gather(*map(walk, range(runs))))

    return asyncio.run(walks())


def generated(lm: LocalLM, prompt: str) -> str:
    """What ``transformers`` itself writes, cut after the first line."""
    ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
    most = lm.sampling.max_tokens
    output: Any = lm.model.generate(ids, max_new_tokens=most, do_sample=False)
    for end in range(1, most + 1):
        text = lm.tokenizer.decode(output[0, ids.shape[1] :][:end], skip_special_tokens=True)
        if "\n" in text.lstrip():
            break
    return text


# ---- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
@pytest.mark.parametrize("name", CUT)
def test_kept_prefixes_change_no_word(
    save: Callable[[str, PreTrainedConfig], Path], name: str, layout: str
) -> None:
    folder = save(name, CUT[name])
    kept = LocalLM(folder, device="cpu", sampling=SAMPLING)
    whole = LocalLM(folder, device="cpu", sampling=SAMPLING, reuse=False)
    assert kept.reuse and kept.note == "" and not whole.reuse
    walks, others = walk_all(kept, layout), walk_all(whole, layout)
    assert [w.texts for w in walks] == [w.texts for w in others]
    for walk in walks[:2]:
        for prompt, texts in zip(walk.prompts, walk.texts, strict=True):
            assert texts == [generated(whole, prompt)] * 2
    assert len({text for walk in walks for step in walk.texts for text in step}) > 8


@pytest.mark.parametrize("batch_size", [1, 3])
def test_draws_depend_on_no_batch(llama: Path, batch_size: int) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=8, seed=3)
    lms = [
        LocalLM(llama, device="cpu", sampling=sampling),
        LocalLM(llama, device="cpu", sampling=sampling, batch_size=batch_size),
        LocalLM(llama, device="cpu", sampling=sampling, reuse=False),
    ]
    one, *others = [[walk.texts for walk in walk_all(lm, "grouped")] for lm in lms]
    assert others == [one, one]
    assert all(first != second for walk in one for first, second in walk), "candidates differ"


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    drafts = [Draft([0], "q", seed) for seed in range(4000)]

    def shares(sampling: Sampling) -> list[float]:
        tokens = draw(logits.expand(len(drafts), -1), drafts, sampling)
        return [tokens.count(token) / len(drafts) for token in range(4)]

    assert shares(Sampling(temperature=1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    # 0.5 and 0.3 make up 0.7, and the first alone does not.
    assert shares(Sampling(temperature=1.0, top_p=0.7)) == pytest.approx(
        [0.625, 0.375, 0, 0], abs=0.03
    )
    assert shares(Sampling(temperature=0.01)) == [1, 0, 0, 0]
    assert shares(Sampling()) == [1, 0, 0, 0]


@pytest.mark.parametrize("reuse", [True, False])
def test_a_newline_ends_a_sentence(reuse: bool) -> None:
    lm = LocalLM(
        BASE_READERS["base-reader"], device="cpu", sampling=Sampling(max_tokens=60), reuse=reuse
    )
    (answer,) = ask(lm, request(READER_PROMPT))
    # Which name it reads is the world's evidence, not this test's matter; that it stops is.
    assert answer.text.startswith("The director of Silver Harbor is ")
    assert answer.text.count("\n") == 1 and answer.text.endswith("\n")
    assert answer.usage.completion_tokens == len(lm.tokenizer(answer.text)["input_ids"]) < 60


@pytest.mark.parametrize("reuse", [True, False])
def test_the_end_of_sequence_ends_a_sentence(tmp_path: Path, reuse: bool) -> None:
    lm = LocalLM(BASE_READERS["base-reader"], device="cpu", sampling=SAMPLING, reuse=reuse)
    (long,) = ask(lm, request(READER_PROMPT))
    written = lm.tokenizer(long.text)["input_ids"]
    last = next(at for at in range(2, len(written)) if written[at] not in written[:at])
    folder = shutil.copytree(BASE_READERS["base-reader"], tmp_path / "model")
    GenerationConfig(eos_token_id=[1, written[last]]).save_pretrained(folder)
    lm = LocalLM(folder, device="cpu", sampling=SAMPLING, reuse=reuse)
    (short,) = ask(lm, request(READER_PROMPT))
    assert lm.tokenizer(short.text)["input_ids"] == written[:last]
    assert short.usage.completion_tokens == last


# ---- what is prefilled --------------------------------------------------------------------------


def fresh(answers: list[Completion]) -> int:
    return sum(a.usage.prompt_tokens - a.usage.cached_tokens for a in answers)


def common(one: list[int], other: list[int]) -> int:
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((at for at, equal in enumerate(same) if not equal), min(len(one), len(other)))


def test_every_passage_is_prefilled_once() -> None:
    lm = LocalLM(BASE_READERS["base-reader"], device="cpu", sampling=Sampling(max_tokens=30))
    read = 0
    forward = lm.model.forward

    def counted(**inputs: Any) -> Any:
        nonlocal read
        read += inputs["input_ids"].numel()
        return forward(**inputs)

    lm.model.forward = counted  # type: ignore[method-assign]
    (walk,) = walk_all(lm, "grouped", runs=1, steps=5, candidates=1, fewest=1)
    prompts = [lm.tokenizer(prompt)["input_ids"] for prompt in walk.prompts]
    # The last token of a sentence was written, but not read.
    kept = [
        p + lm.tokenizer(t)["input_ids"][:-1] for p, (t,) in zip(prompts, walk.texts, strict=True)
    ]
    seen = [0, *(common(old, new) for old, new in zip(kept, prompts[1:], strict=False))]
    expected = [len(prompt) - some for prompt, some in zip(prompts, seen, strict=True)]
    assert [fresh(step) for step in walk.answers] == expected
    written = [max(step[0].usage.completion_tokens - 1, 0) for step in walk.answers]
    assert read == sum(expected) + sum(written)
    # Of a step's prompt, only what follows the passages is read again at the next step.
    after = [len(lm.tokenizer(p.partition("Reasoning:")[2])["input_ids"]) for p in walk.prompts]
    cue = len(lm.tokenizer("Reasoning:")["input_ids"])
    assert 0 < sum(expected) - len(prompts[-1]) <= sum(cue + some for some in after[:-1])


def test_interleaved_sentences_are_not_read_again() -> None:
    lm = LocalLM(BASE_READERS["base-reader"], device="cpu", sampling=Sampling(max_tokens=30))
    (first,) = ask(lm, request(READER_PROMPT))
    ids, written = (lm.tokenizer(text)["input_ids"] for text in (READER_PROMPT, first.text))
    following = f"{READER_PROMPT}{first.text}Passage: Amber Quill. She sang.\nReasoning:\n"
    (second,) = ask(lm, request(following, step=1))
    # Of the sentence, only its newline was never read.
    assert second.usage.cached_tokens == len(ids) + len(written) - 1


def test_candidates_share_one_prefill(llama: Path) -> None:
    lm = LocalLM(llama, device="cpu", sampling=Sampling(temperature=1.0, max_tokens=6))
    prompt = f"{INSTRUCTION}{words(random.Random(1), 20, 30)}\n"
    length = len(lm.tokenizer(prompt)["input_ids"])
    together = ask(lm, *(request(prompt, candidate=c) for c in range(4)))
    assert fresh(together) == length
    later = ask(lm, request(prompt, candidate=4))
    assert fresh(later) == 1  # the last token, for its logits


def test_a_shared_instruction_is_prefilled_once(llama: Path) -> None:
    lm = LocalLM(llama, device="cpu", sampling=SAMPLING)
    prompts = [f"{INSTRUCTION}{name}\n" for name in ("amber", "river", "north")]
    ids = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    shared = common(ids[0], ids[1])
    assert shared == common(ids[0], ids[2]) > 5
    answers = ask(lm, *(request(p, f"{n}") for n, p in enumerate(prompts[:2])))
    assert [a.usage.cached_tokens for a in answers] == [0, shared]
    for run in range(2):
        ask(lm, request(f"{prompts[run]}So", f"{run}", step=1, final=True))
    assert lm.decoder and lm.decoder.tree.tokens == shared, "the runs are over"
    (last,) = ask(lm, request(prompts[2], "2"))
    assert last.usage.cached_tokens == shared


def test_what_had_to_be_dropped_is_prefilled_again(llama: Path) -> None:
    roomy, tight = (LocalLM(llama, device="cpu", sampling=SAMPLING) for _ in range(2))
    assert tight.decoder
    tight.decoder.tree.limit = 150
    walks, others = walk_all(roomy, "grouped"), walk_all(tight, "grouped")
    assert [w.texts for w in walks] == [w.texts for w in others]
    assert tight.decoder.tree.tokens <= 150
    spent = [sum(fresh(step) for w in some for step in w.answers) for some in (walks, others)]
    assert spent[0] < spent[1]


# ---- what cannot be done ------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNCUT)
def test_a_cache_that_cannot_be_cut_is_not_kept(
    save: Callable[[str, PreTrainedConfig], Path], name: str
) -> None:
    config, reason = UNCUT[name]
    lm = LocalLM(save(name, config), device="cpu", sampling=Sampling(max_tokens=4))
    assert not lm.reuse and lm.decoder is None
    assert reason in lm.note and "every prompt is prefilled whole" in lm.note
    answers = ask(lm, *(request(f"{INSTRUCTION}{n}\n", f"{n}") for n in range(2)))
    assert fresh(answers) == sum(answer.usage.prompt_tokens for answer in answers)


def test_a_model_that_takes_no_padding_is_found_out(llama: Path) -> None:
    lm = LocalLM(llama, device="cpu")
    forward = lm.model.forward

    def shifted(
        input_ids: Any, position_ids: Any, past_key_values: Any, logits_to_keep: int, **more: Any
    ) -> Any:
        # A model that takes a token's place in the cache for its position.
        known = past_key_values.get_seq_length() if past_key_values else 0
        more["position_ids"] = known + torch.arange(input_ids.shape[1])[None]
        return forward(
            input_ids=input_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **more,
        )

    assert obstacle(lm.model) == ""
    lm.model.forward = shifted  # type: ignore[method-assign]
    assert "logits differ" in obstacle(lm.model)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_prompt_beyond_the_models_positions_fails_alone(tmp_path: Path, reuse: bool) -> None:
    save_tiny_model(tmp_path, ["word\n"] * 20, positions=256)
    lm = LocalLM(tmp_path, device="cpu", sampling=Sampling(max_tokens=12), reuse=reuse)

    async def both() -> list[Completion | BaseException]:
        asked = [request("word " * 400, "long"), request("word\n", "short")]
        return await asyncio.gather(*map(lm.complete, asked), return_exceptions=True)

    long, short = asyncio.run(both())
    assert isinstance(long, CompletionError)
    assert "exceed the model's 256 positions" in str(long) and "Lower --k" in str(long)
    assert isinstance(short, Completion) and short.usage.completion_tokens > 0


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SteperError, match="no causal language model could be loaded"):
        LocalLM(tmp_path)
