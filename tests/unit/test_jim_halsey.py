"""The paper's own example, from rollout to the tokens that are labels in each task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from fakes import ListRetriever, ScriptedLM
from models import save_tiny_model, tiny_tokenizer
from steper.attention import TRIE
from steper.audit import encode
from steper.batches import Encoded, Packing, collate, forward, use_attention
from steper.driver import run
from steper.evaluate import score_trajectory
from steper.examples import Targets, step_examples
from steper.lm.annotated import AnnotatedTeacher
from steper.loss import task_losses
from steper.prompts import ANSWER_CUE
from steper.setting import Setting
from steper.templates import load_template
from steper.types import TASKS, Hop, Passage, Question, Step, StepExample, Trajectory

R1 = "Jim Halsey managed Roy Clark."
R2 = "Roy Clark hosted Hee Haw."
R3 = "Hee Haw was an American country variety show."
ANSWER = "So the answer is: Hee Haw."
CHAIN = (
    Hop("Whom did Jim Halsey manage?", "Roy Clark", "Jim Halsey", R1),
    Hop("What did Roy Clark host?", "Hee Haw", "Roy Clark", R2),
    Hop("What was Hee Haw?", "country variety show", "Hee Haw", R3),
)
QUESTION = Question(
    id="halsey",
    question="Jim Halsey guided the career of the musician who hosted what country variety show?",
    answer="Hee Haw",
    hops=3,
    supporting_titles=("Jim Halsey", "Roy Clark", "Hee Haw"),
    chain=CHAIN,
)
CORPUS = [
    Passage("p1", "Jim Halsey", "Jim Halsey guided the career of the musician Roy Clark ."),
    Passage("p2", "Roy Clark", "Roy Clark was a singer who hosted Hee Haw ."),
    Passage("p3", "Hee Haw", "Hee Haw was an American country variety show ."),
    Passage("p4", "Glenn Ash", "Glenn Ash was a comedian ."),
]


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    setting = Setting("ircot", load_template("ircot"), k=2, max_steps=5)
    lm = ScriptedLM([f"{line}\nand more" for line in (R1, R2, R3, ANSWER)])
    retriever = ListRetriever(CORPUS)
    (result,) = run([QUESTION], setting=setting, retriever=retriever, lm=lm)
    assert retriever.queries == [QUESTION.question, R1, R2, R3]
    return result


def test_rollout(trajectory: Trajectory) -> None:
    assert [step.reasoning for step in trajectory.steps] == [R1, R2, R3, ANSWER]
    assert trajectory.answer == "Hee Haw" and trajectory.stopped == "answer"
    found = [[passage.id for passage in step.passages] for step in trajectory.steps]
    assert found == [["p1", "p3"], ["p2"], [], []]


def test_examples(trajectory: Trajectory) -> None:
    template = load_template("ircot")
    examples = step_examples(trajectory, template)
    assert [e.task for e in examples] == [TASKS[0], TASKS[1], TASKS[1], TASKS[2]]
    assert [e.target for e in examples] == [
        f"{R1}\n",
        f"{R1}\n{R2}\n",
        f"{R1}\n{R2}\n{R3}\n",
        f"{R1}\n{R2}\n{R3}\n{ANSWER}\n",
    ]
    for number, example in enumerate(examples, start=1):
        seen = [step.passages for step in trajectory.steps[:number]]
        assert example.prompt == template.render(QUESTION.question, seen, [])
    incremental = step_examples(trajectory, template, targets="incremental")
    assert [e.target for e in incremental] == [f"{s}\n" for s in (R1, R2, R3, ANSWER)]
    for cumulative, single in zip(examples, incremental, strict=True):
        assert cumulative.prompt + cumulative.target == single.prompt + single.target


def test_interleaved_examples(trajectory: Trajectory) -> None:
    template = load_template("ircot").bare().laid_out("interleaved")
    examples = step_examples(trajectory, template)
    assert [e.task for e in examples] == [TASKS[0], TASKS[1], TASKS[1], TASKS[2]]
    assert [e.target for e in examples] == [f"{s}\n" for s in (R1, R2, R3, ANSWER)]
    halsey, clark, show = (f"Passage: {p.title}\n{p.text}\n" for p in CORPUS[:3])
    assert examples[-1].prompt == (
        f"{template.instruction}\nQuestion: {QUESTION.question}\n"
        f"{halsey}{show}Reasoning:\n{R1}\n"
        f"{clark}Reasoning:\n{R2}\n"
        f"Reasoning:\n{R3}\n"
        f"Reasoning:\n"
    )
    # The whole trajectory is the last example; every other one is a beginning of it.
    whole = examples[-1].prompt + examples[-1].target
    assert all(whole.startswith(example.prompt + example.target) for example in examples)


@pytest.mark.parametrize("packing", ["trie", "none"])
def test_labels(trajectory: Trajectory, packing: Packing) -> None:
    examples = step_examples(trajectory, load_template("ircot"))
    tokenizer = tiny_tokenizer([e.prompt + e.target for e in examples])
    (group,) = encoded_groups(examples, tokenizer)
    batch = collate([group], packing=packing, pad_id=tokenizer.pad_token_id)
    assert batch.tasks.tolist() == [0, 1, 1, 2]
    assert batch.names == tuple(example.id for example in examples)
    assert batch.ids.shape[0] == (1 if packing == "trie" else 4)
    for number, example in enumerate(examples):
        of_example = batch.examples == number
        labels = batch.targets[of_example]
        # A newline ends a step; only the whole run ends with the end-of-sequence token.
        end = tokenizer.eos_token if example.task == "aggregation" else ""
        assert tokenizer.decode(labels) == example.target + end
        # The first label is predicted from the last token of the prompt.
        places = batch.ids[:, batch.columns].flatten()[batch.sources[of_example]]
        assert places[0] == tokenizer(example.prompt)["input_ids"][-1]
        # Every later label is predicted from the label before it.
        assert torch.equal(places[1:], labels[:-1])


def test_the_answer_is_asked_for_at_the_last_allowed_step() -> None:
    setting = Setting("ircot", load_template("ircot"), k=1, max_steps=2)
    lm = ScriptedLM([R1, " Roy Clark.\n"])
    (result,) = run([QUESTION], setting=setting, retriever=ListRetriever(CORPUS), lm=lm)
    assert lm.requests[1].prompt.endswith(f"{R1}\n{ANSWER_CUE}") and lm.requests[1].final
    assert result.steps[1].reasoning == f"{ANSWER_CUE} Roy Clark."
    assert result.answer == "Roy Clark" and result.stopped == "limit"


MORE = [
    Passage(
        "d1", "Minnie Pearl", "Minnie Pearl was a comedian who appeared at the Grand Ole Opry ."
    ),
    Passage("d2", "Hal Smith", "Hal Smith was a manager in Nashville ."),
    Passage("d3", "Clark County", "Clark County is a county named after a soldier ."),
]


def test_the_annotated_teacher_walks_the_same_road(trajectory: Trajectory) -> None:
    setting = Setting("ircot", load_template("ircot"), k=2, max_steps=5)
    retriever = ListRetriever([*MORE, *CORPUS])
    (result,) = run([QUESTION], setting=setting, retriever=retriever, lm=AnnotatedTeacher())
    assert [step.reasoning for step in result.steps] == [R1, R2, R3, ANSWER]
    assert result.answer == trajectory.answer and result.stopped == "answer"
    assert {"p1", "p2", "p3"} <= {passage.id for passage in result.passages}
    scores = score_trajectory(result, "hotpotqa")
    assert (scores.em, scores.recall, scores.steps) == (1.0, 1.0, 4)
    assert (scores.initialization, scores.expansion, scores.aggregation) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("targets", ["cumulative", "incremental"])
@pytest.mark.parametrize("packing", ["trie", "none"])
def test_no_token_of_a_prompt_is_a_label(
    trajectory: Trajectory, packing: Packing, targets: Targets
) -> None:
    """The label mask a user of IGNORE = -100 would write, rebuilt from the batch."""
    examples = step_examples(trajectory, load_template("ircot"), targets=targets)
    tokenizer = tiny_tokenizer([e.prompt + e.target for e in examples])
    (group,) = encoded_groups(examples, tokenizer)
    batch = collate([group], packing=packing, pad_id=tokenizer.pad_token_id)
    for number, (example, encoded) in enumerate(zip(examples, group, strict=True)):
        assert tokenizer.decode(encoded.ids[: encoded.prompt]) == example.prompt
        labels = ignoring_labels(encoded)
        assert labels[: encoded.prompt] == [IGNORE] * encoded.prompt
        end = tokenizer.eos_token if example.task == "aggregation" else ""
        assert tokenizer.decode(labels[encoded.prompt :]) == example.target + end
        kept = [label for label in labels if label != IGNORE]
        assert batch.targets[batch.examples == number].tolist() == kept
    # Each predicting place once an example; in a padded batch it lies in the example's own row.
    places = set(zip(batch.examples.tolist(), batch.sources.tolist(), strict=True))
    assert len(places) == len(batch.targets) == sum(len(e.ids) - e.prompt for e in group)
    if packing == "none":
        assert torch.equal(batch.sources // len(batch.columns), batch.examples)


def test_passages_are_never_labels(trajectory: Trajectory) -> None:
    """However the targets grow, what was retrieved stays outside of them."""
    for targets in ("cumulative", "incremental"):
        for example in step_examples(trajectory, load_template("ircot"), targets=targets):
            assert not any(passage.text in example.target for passage in CORPUS)
            assert QUESTION.question not in example.target


IGNORE = -100


def ignoring_labels(encoded: Encoded) -> list[int]:
    return [IGNORE] * encoded.prompt + list(encoded.ids[encoded.prompt :])


def encoded_groups(
    examples: list[StepExample], tokenizer: PreTrainedTokenizerBase
) -> list[list[Encoded]]:
    groups, audit = encode(examples, tokenizer, template=load_template("ircot"), max_length=4096)
    assert not audit.findings
    return groups


@pytest.fixture(scope="module")
def student(
    trajectory: Trajectory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LlamaForCausalLM, list[StepExample], list[list[Encoded]]]:
    """A tiny model, and three trajectories: of four steps, of one, and of two."""
    template = load_template("ircot")
    (first, *_, last) = trajectory.steps
    one, two = (Question(name, "What did Roy Clark host?", "Hee Haw") for name in ("one", "two"))
    runs = [
        trajectory,
        Trajectory(one, (last,), "Hee Haw"),
        Trajectory(two, (first, Step(R1, (), ANSWER)), "Hee Haw"),
    ]
    examples = [example for item in runs for example in step_examples(item, template)]
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder, [e.prompt + e.target for e in examples])
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    return model, examples, encoded_groups(examples, AutoTokenizer.from_pretrained(folder))


@torch.no_grad()
def naive_loss(model: LlamaForCausalLM, encoded: Encoded) -> float:
    use_attention(model, "sdpa")
    logits = model(input_ids=torch.tensor([list(encoded.ids)])).logits[0, :-1]
    labels = torch.tensor(ignoring_labels(encoded)[1:])
    return F.cross_entropy(logits, labels, ignore_index=IGNORE).item()


@pytest.mark.parametrize("packing", ["trie", "none"])
@pytest.mark.parametrize(
    "micro_batches", [[[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]], [[2], [1, 0]]]
)
def test_eq_3_divides_by_the_trajectories_of_the_whole_step(
    student: tuple[LlamaForCausalLM, list[StepExample], list[list[Encoded]]],
    micro_batches: list[list[int]],
    packing: Packing,
) -> None:
    """L_j sums the means over each example's labels and divides by n = 3, whatever the task."""
    model, examples, groups = student
    assert [len(group) for group in groups] == [4, 1, 2]
    assert [TASKS[e.task] for group in groups for e in group] == [e.task for e in examples]
    use_attention(model, TRIE if packing == "trie" else "sdpa")
    total: Tensor = torch.zeros(3)
    with torch.no_grad():
        for part in micro_batches:
            batch = collate([groups[index] for index in part], packing=packing, pad_id=0)
            total += task_losses(forward(model, batch), batch.tasks, 3)
    expected = [0.0, 0.0, 0.0]
    for encoded in (encoded for group in groups for encoded in group):
        expected[encoded.task] += naive_loss(model, encoded) / 3
    assert total.tolist() == pytest.approx(expected, rel=1e-5)
    # Initialization has two examples, expansion two, aggregation three: all divided by three.
    assert [sum(e.task == task for g in groups for e in g) for task in range(3)] == [2, 2, 3]
