"""Pretrain the base reader: the tiny language model that the demo's students start from.

A real student starts from a pretrained base that can already read. The offline demo has no such
base to download, so the project trains its own, on generated worlds whose names never occur in
the demo's. It learns to copy a name out of the right passage, to follow a chain whose passages
are all there, and to answer "unknown" where they are not. It never sees the step-wise protocol:
no partial retrieval, no search sentence, no second search. That is what StepER has to teach.

    python -m steper.world.pretrain --out base_reader --minutes 60

The model is a stock Qwen3 that ``transformers`` and vLLM load unchanged. Matrices are trained
with Muon, the rest with AdamW. The learning curve goes to ``OUT/curve.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from steper.prompts import answer_sentence
from steper.templates import load_template
from steper.types import Passage, Question
from steper.world.generator import World, entity_of, read, relation_named

TEMPLATE = load_template("world")

ROPE_THETA = 1e6

FACTS = 16
"""Most facts restated after a list of passages."""

PASSAGE_LOSS = 0.15
"""Weight of plain language modelling on prompt tokens, against 1 on what has to be read."""

Span = tuple[str, float]
"""A piece of text and the loss weight of its tokens."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How hard the samples are: most passages in a prompt, most hops in a chain."""

    passages: int
    hops: int


CURRICULUM: tuple[tuple[float, Stage], ...] = (
    (0.00, Stage(passages=1, hops=1)),
    (0.10, Stage(passages=2, hops=1)),
    (0.20, Stage(passages=3, hops=2)),
    (0.32, Stage(passages=4, hops=3)),
    (0.60, Stage(passages=7, hops=4)),
)
"""(fraction of the budget, stage) pairs; each stage lasts until the next begins."""


def stage_at(progress: float) -> Stage:
    """The stage in force when a fraction ``progress`` of the budget is spent."""
    return [stage for start, stage in CURRICULUM if progress >= start][-1]


def train_tokenizer(vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """The world's tokenizer, in which every word of the world is one token."""
    rng = random.Random(0)
    texts = (
        "".join(text for text, _ in sample(world, rng, Stage(passages=4, hops=4)))
        for seed in range(150)
        for world in [World.generate(seed=10**6 + seed, part="pretrain", entities=60)]
        for _ in range(40)
    )
    return byte_level_bpe(texts, vocab_size=vocab_size)


def byte_level_bpe(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts, for which any text is legal."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>"
    )


def build_model(vocab_size: int, *, hidden: int, layers: int) -> Qwen3ForCausalLM:
    """A stock Qwen3 of toy size with tied embeddings, started with an induction circuit."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    start_with_induction(model)
    return model


@torch.no_grad()
def start_with_induction(model: Qwen3ForCausalLM) -> None:
    """Set initial weights so that two heads already copy what followed a token's last occurrence.

    Copying needs a head that knows what came before each token, and one that matches on it; found
    from noise they cost most of a CPU budget. Only initial values change: the architecture stays
    stock and training is free to undo them.

    Half of layer 0's heads attend one token back: a component shared by all embeddings gives
    queries and keys a constant, the query's turned by one position in the fastest rotary
    frequencies. Half of layer 1's heads match the token at hand with that previous token, in the
    slow frequencies where distance hardly matters, and copy what stands there.
    """
    config, shared = model.config, 0.1
    size, half, heads = config.head_dim, config.head_dim // 2, config.num_attention_heads // 2
    embeddings = model.model.embed_tokens.weight
    # The first norm divides an embedding by its root mean square.
    level = shared / (embeddings.std().item() ** 2 + shared**2 / config.hidden_size) ** 0.5
    embeddings[:, 0] = shared
    first, second = (model.model.layers[i].self_attn for i in (0, 1))
    for layer in model.model.layers:
        # Nothing else writes to the residual stream at first, so the circuit reads it clean.
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.q_norm.weight.fill_(2.0)
        layer.self_attn.k_norm.weight.fill_(2.0)
    slow = [*range(12, half), *range(half + 12, size)]
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        for pair in range(3):
            angle = torch.tensor(ROPE_THETA ** (-pair / half))
            first.q_proj.weight[rows][pair, 0] = 8.0 / level * angle.cos()
            first.q_proj.weight[rows][pair + half, 0] = -8.0 / level * angle.sin()
            first.k_proj.weight[rows][pair, 0] = 8.0 / level
        reads = torch.nn.init.orthogonal_(torch.empty(size, config.hidden_size))
        reads[:, 0] = 0.0
        writes = torch.nn.init.orthogonal_(torch.empty(config.hidden_size, size))
        first.v_proj.weight[rows] = reads
        first.o_proj.weight[:, rows] = 0.02 * writes  # embeddings have a deviation of 0.02
        match = torch.nn.init.orthogonal_(torch.empty(len(slow), size))
        query, key = second.q_proj.weight[rows], second.k_proj.weight[rows]
        query[slow] = match @ reads
        key[slow] = match @ writes.T
        copies = torch.nn.init.orthogonal_(torch.empty(size, config.hidden_size))
        second.v_proj.weight[rows] = copies
        second.o_proj.weight[:, rows] = 0.02 * copies.T


# ---- samples ---------------------------------------------------------------------------------


def pick_passages(
    world: World, rng: random.Random, titles: Sequence[str], most: int
) -> list[Passage]:
    """The passages of ``titles`` among distractors, half of which share a word with them."""
    wanted = list(dict.fromkeys(titles))
    count = rng.randint(len(wanted), max(most, len(wanted)))
    shared = {word for title in wanted for word in title.split()}
    namesakes = [t for t in world.passages if shared & set(t.split()) and t not in wanted]
    rng.shuffle(namesakes)
    for title in namesakes[: (count - len(wanted) + 1) // 2]:
        wanted.append(title)
    while len(wanted) < count:
        title = rng.choice(list(world.passages))
        if title not in wanted:
            wanted.append(title)
    rng.shuffle(wanted)
    return [world.passages[title] for title in wanted]


def fact_list(world: World, rng: random.Random, stage: Stage) -> list[Span]:
    """Passages, then their facts restated in any order: the densest practice in reading.

    Mostly the passages are about entities of one kind, so that the relation alone does not tell
    which of them to read.
    """
    if stage.passages > 1 and rng.random() < 0.7:
        kind = rng.choice(list(world.kinds.values()))
        pool = [title for title in world.passages if world.kinds[entity_of(title)] == kind]
        titles = rng.sample(pool, min(len(pool), rng.randint(2, stage.passages)))
        passages = [world.passages[title] for title in titles]
    else:
        title = rng.choice(list(world.passages))
        passages = pick_passages(world, rng, [title], stage.passages)
    prompt = TEMPLATE.render("", [passages], []).removeprefix("Question: \n")
    facts = [fact for passage in passages for fact in read(passage.text)]
    rng.shuffle(facts)
    spans: list[Span] = [(prompt, PASSAGE_LOSS)]
    for subject, name, value in facts[:FACTS]:
        statement = relation_named(name).statement(subject, value)
        cue = statement.removesuffix(f" {value}.")
        spans += [(cue, PASSAGE_LOSS), (f" {value}.\n", 1.0)]
    return spans


def question_and_chain(world: World, rng: random.Random, stage: Stage) -> list[Span]:
    """A question over passages; one time in five a passage it needs is missing."""
    if stage.hops > 1 and rng.random() < 0.25:
        question: Question = world.comparison(rng)
    else:
        question = world.chain_question(rng, hops=rng.randint(1, stage.hops))
    titles = list(dict.fromkeys(hop.title for hop in question.chain))
    lines = [hop.statement for hop in question.chain]
    answer = question.answer
    if rng.random() < 0.2:
        missing = rng.choice(titles)
        titles.remove(missing)
        lines = lines[: next(i for i, hop in enumerate(question.chain) if hop.title == missing)]
        answer = "unknown"
    passages = pick_passages(world, rng, titles, max(stage.passages, len(titles)))
    passages = [p for p in passages if answer != "unknown" or p.title != missing]
    lines = [*lines, answer_sentence(answer)]
    prompt = TEMPLATE.render(question.question, [passages], [])
    return [(prompt, PASSAGE_LOSS), ("".join(f"{line}\n" for line in lines), 1.0)]


def echo(world: World, rng: random.Random) -> list[Span]:
    """Names said twice in the same order: the densest practice in copying."""
    names = " ".join(rng.sample(list(world.passages), rng.randint(4, 16)))
    return [(names, 0.0), (f" {names}", 1.0)]


def sample(world: World, rng: random.Random, stage: Stage) -> list[Span]:
    """One training text as weighted spans: mostly copying first, mostly questions later."""
    echoes, lists = (0.25, 0.4) if stage.hops == 1 else (0.0, 0.5)
    draw = rng.random()
    if draw < echoes:
        return echo(world, rng)
    return (fact_list if draw < echoes + lists else question_and_chain)(world, rng, stage)


Encoded = tuple[list[int], list[float]]
"""Token ids of one text and the loss weight of each."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded texts. All (batch, tokens); ``weights`` is 0 on padding."""

    ids: Tensor
    mask: Tensor
    weights: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[list[Span]]) -> list[Encoded]:
    """Tokenise span by span (every cut is at a newline or before a space)."""
    pieces = iter(
        tokenizer([t for spans in texts for t, _ in spans], add_special_tokens=False)["input_ids"]
    )
    encoded = []
    for spans in texts:
        ids: list[int] = []
        weights: list[float] = []
        for _, weight in spans:
            piece = next(pieces)
            ids += piece
            weights += [weight] * len(piece)
        encoded.append(([*ids, tokenizer.eos_token_id], [*weights, 1.0]))
    return encoded


def pad(rows: Sequence[Encoded]) -> Batch:
    """Stack rows of different lengths, padded on the right."""
    width = max(len(ids) for ids, _ in rows)
    return Batch(
        ids=torch.tensor([i + [0] * (width - len(i)) for i, _ in rows]),
        mask=torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in rows]),
        weights=torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows]),
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, stage: Stage, tokens: int
) -> Iterator[Batch]:
    """Endless batches of at most ``tokens`` padded tokens; a new world every 256 texts."""
    while True:
        world = World.generate(seed=rng.randrange(10**6), part="pretrain", entities=60)
        rows = encode(tokenizer, [sample(world, rng, stage) for _ in range(256)])
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[Encoded]] = [[]]
        for row in rows:  # ascending, so the newest row is the width of its group
            if groups[-1] and (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from map(pad, groups)


# ---- training --------------------------------------------------------------------------------


def weighted_loss(model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Cross-entropy with a weight per token, averaged over the weights."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


@torch.no_grad()
def exact_rate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[list[Span]]
) -> float:
    """Share of texts of which every weight-1 token is the model's first choice."""
    hits = 0
    for start in range(0, len(texts), 32):
        batch = pad(encode(tokenizer, texts[start : start + 32]))
        choice = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].argmax(-1)
        wrong = (choice != batch.ids[:, 1:]) & (batch.weights[:, 1:] == 1.0)
        hits += int((~wrong.any(dim=1)).sum())
    return hits / len(texts)


def probes() -> dict[str, list[list[Span]]]:
    """Held-out reading tests, on worlds with seeds that training never draws."""
    rng = random.Random(1)
    world = World.generate(seed=2 * 10**6, part="pretrain", entities=120)
    shapes = {
        "one_hop_1": Stage(1, 1),
        "one_hop_4": Stage(4, 1),
        "chain_4": Stage(4, 3),
        "chain_8": Stage(8, 4),
    }
    return {
        name: [question_and_chain(world, rng, stage) for _ in range(128)]
        for name, stage in shapes.items()
    }


def optimizers(model: Qwen3ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and gains."""
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pretrain(out: Path, args: argparse.Namespace) -> None:
    """Train for ``args.minutes`` in all and write model, tokenizer and curve to ``out``.

    Called again on the same folder it goes on from the last measurement.
    """
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out.mkdir(parents=True, exist_ok=True)
    tests = probes()
    curve = [json.loads(line) for line in _lines(out / "curve.jsonl")]
    done: dict[str, Any] = curve[-1] if curve else {"minutes": 0.0, "steps": 0, "tokens": 0}
    if curve:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        model = Qwen3ForCausalLM.from_pretrained(out)
    else:
        tokenizer = train_tokenizer()
        model = build_model(len(tokenizer), hidden=args.hidden, layers=args.layers)
    optims = optimizers(model, args.lr)
    if curve and (out / "optimizers.pt").exists():
        for optim, state in zip(optims, torch.load(out / "optimizers.pt"), strict=True):
            optim.load_state_dict(state)
    rng = random.Random(f"{args.seed}-{done['steps']}")
    begin = time.monotonic() - 60 * done["minutes"]
    step, tokens, shown, start = done["steps"], done["tokens"], done["minutes"], done["steps"]
    stage, stream, losses = None, None, list[float]()
    while (progress := (time.monotonic() - begin) / 60 / args.minutes) < 1:
        if stage_at(progress) != stage or stream is None:
            stage = stage_at(progress)
            stream = batches(tokenizer, rng, stage, args.batch_tokens)
        batch = next(stream)
        # Warm up over 50 steps, hold, and decay linearly over the last 30% of the time.
        scale = min(1.0, (step - start + 1) / 50, max(0.02, (1 - progress) / 0.3))
        losses.append(_train_step(model, optims, batch, lr=args.lr * scale))
        tokens, step = tokens + int(batch.mask.sum()), step + 1
        minutes = (time.monotonic() - begin) / 60
        if minutes - shown >= args.every or minutes >= args.minutes:
            shown = minutes
            row: dict[str, float | str] = {"minutes": round(minutes, 1), "steps": step}
            row |= {"tokens": tokens, "stage": f"{stage.passages}p{stage.hops}h"}
            row |= {"loss": round(sum(losses) / len(losses), 3)}
            row |= {n: round(exact_rate(model, tokenizer, t), 3) for n, t in tests.items()}
            losses = []
            print(json.dumps(row), flush=True)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
            torch.save([optim.state_dict() for optim in optims], out / "optimizers.pt")
            with (out / "curve.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _train_step(
    model: Qwen3ForCausalLM, optims: Sequence[torch.optim.Optimizer], batch: Batch, *, lr: float
) -> float:
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = lr
    loss = weighted_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in optims:
        optim.step()
        optim.zero_grad()
    return loss.item()


def main() -> None:
    """Command line of the pretraining script."""
    parser = argparse.ArgumentParser(description="Pretrain the base reader of the offline world.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=1.0, help="minutes between measurements")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.out, args)


if __name__ == "__main__":
    main()
