"""What all-step supervision costs: `steper train` beside TRL's SFTTrainer, in one run.

    python benchmarks/training.py --quick                  # minutes on two cores
    python benchmarks/training.py --json training.json     # both models, S = 2 … 5
    python benchmarks/training.py --models llama-8b --device cuda --lora-rank 16

Every contender trains the same random model on the same trajectories (K = 4 passages of about 130
tokens a step, cumulative targets), one trajectory an optimizer step, through its own real trainer:

==============  =================================================================================
trl             SFTTrainer, the S examples of a trajectory as one padded batch
trl_one         SFTTrainer with batch 1 and S accumulation steps
trl_free        SFTTrainer's padding-free batches, on CUDA with flash attention only
padded          steper, --packing none: the S examples as one padded batch
one_by_one      steper, each example in a pass of its own
trie            steper, --packing trie
final_only      steper, --objective vanilla: the aggregation example alone (Vanilla-KD)
==============  =================================================================================

Each runs in a process of its own and they take turns step by step, so that whatever else the
machine does meets all of them. A step is timed from the end of the one before it: data, forward,
backward, update. The first is warm-up. Memory is the peak above what the process held before.
TRL gets its best settings: no truncation, loss on completions only, no gradient checkpointing;
``trl_best`` in the figures is the fastest of its ways.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTENDERS = ("trl", "trl_one", "trl_free", "padded", "one_by_one", "trie", "final_only")
MODELS = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "base": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8},
    "llama-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
}
K, PASSAGE, SENTENCE = 4, 130, 25
"""Passages a step, and tokens of a passage and of a sentence."""


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    contender: str
    model: str
    steps: int
    trajectories: int
    device: str
    lora_rank: int
    threads: int


# ---- the same for all ---------------------------------------------------------------------------


def build_model(task: Task) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    big = task.model == "llama-8b"
    shape = MODELS[task.model]
    config = LlamaConfig(
        vocab_size=128256 if big else 8192,
        intermediate_size=14336 if big else 8 * shape["hidden_size"] // 3,
        num_key_value_heads=8 if big else shape["num_attention_heads"] // 2,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.1,  # losses that depend on who sees whom
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        **shape,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if task.device == "cuda" else torch.float32)
    with torch.device(task.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if task.lora_rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=task.lora_rank, target_modules="all-linear"))
    return model


def trajectories(count: int, steps: int) -> list[list[Any]]:
    """Random tokens in the lengths of real trajectories, with steper's grouped layout."""
    from steper.batches import Encoded
    from steper.examples import task_of
    from steper.types import TASKS

    rng = random.Random(0)

    def words(mean: int) -> list[int]:
        return [rng.randrange(2, 8000) for _ in range(mean + rng.randrange(-mean // 5, mean // 5))]

    groups = []
    for _ in range(count):
        begin, cue, passages, reasoning = words(40), words(5), list[int](), list[int]()
        group = []
        for step in range(1, steps + 1):
            passages = [*passages, *chain.from_iterable(words(PASSAGE) for _ in range(K))]
            reasoning = [*reasoning, *words(SENTENCE)]
            prompt = begin + passages + cue
            end = [1] if step == steps else []
            task = TASKS.index(task_of(step, steps))
            group.append(Encoded(prompt + reasoning + end, len(prompt), task, f"{step}"))
        groups.append(group)
    return groups


def settings(task: Task, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "learning_rate": 1e-5,
        "num_train_epochs": 1,
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": task.device == "cpu",
        "bf16": task.device == "cuda",
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }


# ---- the contenders -----------------------------------------------------------------------------


def build_trl(task: Task, folder: str) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    vocabulary = {"<pad>": 0, "<eos>": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    rows = [
        {
            "input_ids": list(example.ids),
            "completion_mask": [int(at >= example.prompt) for at in range(len(example.ids))],
        }
        for group in trajectories(task.trajectories, task.steps)
        for example in group
    ]
    one = task.contender == "trl_one"
    free = task.contender == "trl_free"
    config = SFTConfig(
        **settings(task, folder),
        per_device_train_batch_size=1 if one else task.steps,
        gradient_accumulation_steps=task.steps if one else 1,
        max_length=None,
        completion_only_loss=True,
        padding_free=free,
        train_sampling_strategy="sequential",
    )
    model = build_model(task)
    if free:
        model.set_attn_implementation("flash_attention_2")
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def build_steper(task: Task, folder: str) -> Any:
    from transformers import TrainingArguments

    from steper.batches import Steps
    from steper.loss import build_weights
    from steper.trainer import StepTrainer

    groups = trajectories(task.trajectories, task.steps)
    if task.contender == "final_only":
        groups = [group[-1:] for group in groups]
    alone = task.contender == "one_by_one"
    return StepTrainer(
        model=build_model(task),
        args=TrainingArguments(**settings(task, folder), per_device_train_batch_size=1),
        steps=Steps(
            groups,
            batch=1,
            epochs=1.0,
            seed=None,
            packing="none" if task.contender == "padded" else "rows" if alone else "trie",
            row_tokens=1 if alone else 10**6,
            pad_id=0,
        ),
        validation=None,
        task_weights=build_weights("vanilla" if task.contender == "final_only" else "difficulty"),
        history=Path(folder) / "history.jsonl",
    )


def work(task: Task, turn: Connection) -> None:
    """Train in this process, a step whenever it is this process's turn."""
    os.environ["TQDM_DISABLE"] = "1"
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the libraries' hints; errors are sent
    try:
        import torch
        from transformers import TrainerCallback
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
        torch.set_num_threads(task.threads)

        class Turns(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.before, _ = memory(task.device)
                self.wait()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                if task.device == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - self.begin
                turn.send((seconds, memory(task.device)[1] - self.before))
                self.wait()

            def wait(self) -> None:
                turn.recv()
                self.begin = time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            build = build_trl if task.contender.startswith("trl") else build_steper
            trainer = build(task, folder)
            if task.contender == "trie":
                turn.send(exactness(trainer))
            trainer.add_callback(Turns())
            trainer.train()
    except Exception as error:
        turn.send(f"{type(error).__name__}: {error}")


def exactness(trainer: Any) -> float:
    """Largest difference between a packed loss and that of its sequence alone."""
    from steper.batches import packing_error

    steps = trainer.steps
    return max(
        packing_error(trainer.model, [group], packing="trie", pad_id=0, base=trainer.model)
        for group in steps.groups[:2]
    )


def memory(device: str) -> tuple[int, int]:
    """Bytes held now and at the peak."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    import psutil

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return psutil.Process().memory_info().rss, peak * (1 if sys.platform == "darwin" else 1024)


# ---- the race -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Of one contender: median seconds and peak bytes of a trajectory."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Race:
    """One model and number of steps; ``tokens`` are those of a trajectory's examples."""

    model: str
    steps: int
    results: dict[str, Result]
    difference: float
    unique: float
    tokens: int

    def ratio(self, of: str, to: str = "trie") -> float:
        return self.results[of].seconds / self.results[to].seconds

    def figures(self) -> dict[str, float]:
        """What ``--json`` writes."""
        trl = [name for name in self.results if name.startswith("trl")]
        best = min(trl, key=lambda name: self.results[name].seconds)
        figures = {
            "speedup_vs_trl": self.ratio("trl"),
            "speedup_vs_trl_best": self.ratio(best),
            "speedup_vs_padded": self.ratio("padded"),
            "speedup_vs_one_by_one": self.ratio("one_by_one"),
            "cost_vs_final_only": self.ratio("trie", "final_only"),
            "unique_over_raw_tokens": self.unique,
            "max_loss_difference": self.difference,
            "peak_memory_vs_trl": self.results["trie"].memory / self.results["trl"].memory,
            "peak_memory_vs_trl_best": self.results["trie"].memory / self.results[best].memory,
        }
        return {name: float(f"{value:.4g}") for name, value in figures.items()}


def race(args: argparse.Namespace, model: str, steps: int) -> Race:
    """Let the contenders train; those that fit beside each other take turns."""
    free = args.device == "cuda" and find_spec("flash_attn") is not None
    names = [name for name in CONTENDERS if name != "trl_free" or free]
    results: dict[str, Result] = {}
    differences: list[float] = []
    for together in [names] if args.device == "cpu" else [[name] for name in names]:
        tasks = {
            name: Task(
                name, model, steps, args.repeats + 1, args.device, args.lora_rank, args.threads
            )
            for name in together
        }
        results |= take_turns(tasks, differences)
    from steper.packing import unique_tokens

    ids = [[example.ids for example in group] for group in trajectories(args.repeats + 1, steps)]
    unique, raw = sum(map(unique_tokens, ids)), sum(len(one) for group in ids for one in group)
    return Race(model, steps, results, max(differences), unique / raw, raw // len(ids))


def take_turns(tasks: dict[str, Task], differences: list[float]) -> dict[str, Result]:
    context = multiprocessing.get_context("spawn")
    turns, processes = {}, []
    for name, task in tasks.items():
        turns[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(task, theirs), daemon=True))
        processes[-1].start()
    if "trie" in turns:
        differences.append(answer_of("trie", turns["trie"]))
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in tasks}
    rounds = next(iter(tasks.values())).trajectories
    for number in range(rounds):
        for name, turn in turns.items():
            turn.send(None)
            measured[name].append(answer_of(name, turn))
            task, (seconds, _) = tasks[name], measured[name][-1]
            shown = f"{task.model}, S = {task.steps}, {number + 1}/{rounds}: {name} {seconds:.2f} s"
            print(f"\r{shown:<78}", end="", file=sys.stderr, flush=True)
    print(f"\r{'':<78}\r", end="", file=sys.stderr)
    for process in processes:
        process.terminate()
        process.join()
    return {
        name: Result(
            statistics.median(seconds for seconds, _ in values[1:]), max(m for _, m in values)
        )
        for name, values in measured.items()
    }


def answer_of(name: str, turn: Connection) -> Any:
    answer = turn.recv()
    if isinstance(answer, str):
        raise SystemExit(f"{name} failed: {answer}")
    return answer


def table(races: list[Race]) -> str:
    from tabulate import tabulate

    names = list(races[0].results)
    rows: list[list[Any]] = []
    for one in races:
        results = one.results.values()
        rows += [
            [one.model, one.steps, "s", *(f"{r.seconds:.2f}" for r in results)],
            ["", "", "× trie", *(f"{one.ratio(name):.2f}" for name in names)],
            ["", "", "GiB", *(f"{r.memory / 2**30:.2f}" for r in results)],
        ]
        rate = [f"{one.tokens / one.results[name].seconds:,.0f}" for name in names[:-1]]
        rows.append(["", "", "tokens/s", *rate, ""])
    return tabulate(rows, headers=["model", "S", "", *names], disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small model at S = 5")
    parser.add_argument("--json", type=Path, help="write the figures at the largest S to this file")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["small", "base"])
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 3, 4, 5], help="S")
    parser.add_argument("--repeats", type=int, default=5, help="timed trajectories")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lora-rank", type=int, default=0)
    args = parser.parse_args()
    missing = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} not installed: pip install -e '.[dev]' brings it")
    if args.quick:
        args.models, args.steps, args.repeats = ["small"], [5], 3
    races = [race(args, model, steps) for model in args.models for steps in args.steps]
    print(table(races))
    last = max(args.steps)
    figures = {one.model: one.figures() for one in races if one.steps == last}
    print(f"\nAt S = {last}:")
    for model, own in figures.items():
        print(f"  {model}: " + ", ".join(f"{name} {value:g}" for name, value in own.items()))
    if args.json:
        # Flat: the first model's figures, and the others' under their names.
        flat: dict[str, Any] = dict(figures[args.models[0]])
        for model in args.models[1:]:
            flat |= {f"{model}_{name}": value for name, value in figures[model].items()}
        flat |= {"model": args.models[0], "device": args.device, "threads": args.threads}
        args.json.write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
