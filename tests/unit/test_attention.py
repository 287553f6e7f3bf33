"""A packed row gives every sequence exactly the loss and the gradients it would get alone.

The reference shares no code with packing: each sequence alone, unpadded, through the model's own
attention, with torch's cross-entropy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steper.attention import TRIE, Layout
from steper.batches import Encoded, Group, collate, forward, packing_error, use_attention
from steper.packing import pack

TINY: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Wide enough that who sees whom changes every loss in its first digits.
    "initializer_range": 0.3,
}
WINDOW: dict[str, Any] = {"sliding_window": 7}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**TINY, **WINDOW, use_sliding_window=True, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**TINY, head_dim=16)),
    "gemma3-window": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **TINY, **WINDOW, head_dim=16, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**TINY, **WINDOW)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**TINY)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**TINY)),
}


def norm(self: Any, hidden: Tensor) -> Tensor:
    """Root-mean-square norm in the precision of its input; the models' own works in float32."""
    eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
    scale = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps) * scale


def model_of(name: str, dtype: torch.dtype, *, lora: bool = False) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            sample = torch.randn(2, len(module.weight), dtype=dtype)
            torch.testing.assert_close(norm(module, sample), module(sample), rtol=1e-5, atol=1e-5)
            module.forward = norm.__get__(module)
    if lora:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    return model


def trajectory(rng: random.Random, steps: int, *, vocabulary: int = 40) -> list[Encoded]:
    """Prompts that extend each other, targets that differ: what a trajectory looks like."""
    passages = [rng.randrange(1, vocabulary) for _ in range(6 * steps)]
    examples = []
    for step in range(1, steps + 1):
        target = [rng.randrange(1, vocabulary) for _ in range(step + 1)]
        examples.append(Encoded(passages[: 6 * step] + target, 6 * step, min(step - 1, 2)))
    return examples


def weighted(losses: Tensor) -> Tensor:
    """A sum that tells the examples apart."""
    return (losses * torch.arange(1, len(losses) + 1, dtype=losses.dtype)).sum()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def packed(model: Any, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    use_attention(model, TRIE)
    model.zero_grad()
    losses = forward(model, collate(groups, packing="trie", pad_id=0))
    weighted(losses).backward()
    return losses.detach(), gradients(model)


def separate(model: Any, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
    use_attention(model, "sdpa")
    model.zero_grad()
    losses = []
    for example in (example for group in groups for example in group):
        ids = torch.tensor([list(example.ids)])
        logits = model(input_ids=ids, use_cache=False).logits[0, example.prompt - 1 : -1]
        losses.append(F.cross_entropy(logits, ids[0, example.prompt :]))
    total = torch.stack(losses)
    weighted(total).backward()
    return total.detach(), gradients(model)


def assert_equal(model: Any, groups: Sequence[Group], tolerance: float) -> None:
    losses, ours = packed(model, groups)
    ours = [gradient.clone() for gradient in ours]
    expected, theirs = separate(model, groups)
    assert ((losses - expected).abs() / expected.abs()).max() <= tolerance
    assert len(ours) == len(theirs) >= 4
    largest = max(float(their.abs().max()) for their in theirs)
    for our, their in zip(ours, theirs, strict=True):
        # A gradient that is nothing but rounding has no first digits to agree in.
        scale = max(float(their.abs().max()), 1e-3 * largest)
        assert (our - their).abs().max() <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_separate_sequences(
    name: str, lora: bool, checkpointing: bool, dtype: torch.dtype
) -> None:
    model = model_of(name, dtype, lora=lora)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    rng = random.Random(0)
    groups = [trajectory(rng, steps) for steps in (5, 1, 3)]
    assert_equal(model, groups, 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("steps", range(1, 7))
@pytest.mark.parametrize("name", ["llama", "gemma3-window"])
def test_trajectories_of_any_number_of_steps(name: str, steps: int) -> None:
    assert_equal(model_of(name, torch.float64), [trajectory(random.Random(steps), steps)], 1e-9)


# Few tokens, so that sequences share prefixes, repeat, and contain each other; the first example
# of a group may be one token longer than its prompt of one.
tries = st.lists(
    st.lists(
        st.lists(st.integers(1, 3), min_size=2, max_size=10).flatmap(
            lambda ids: st.integers(1, len(ids) - 1).map(lambda p: Encoded(ids, p, 0))
        ),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(tries, st.sampled_from(["llama", "qwen3", "mistral-window", "gemma3-window"]))
def test_any_tries(groups: list[list[Encoded]], name: str) -> None:
    assert_equal(model_of(name, torch.float64), groups, 1e-9)


def test_repeated_sequences_and_prompts_of_one_token() -> None:
    one = [Encoded([5, 6, 7], 1, 0), Encoded([5, 6, 7], 1, 1), Encoded([5, 9], 1, 2)]
    assert_equal(model_of("llama", torch.float64), [one, one], 1e-9)


@pytest.mark.parametrize("window", [None, 5])
def test_the_block_mask_for_cuda_says_the_same(window: int | None) -> None:
    """FlexAttention has no backward pass on a CPU; its forward pass and its mask are tested."""
    rng = random.Random(1)
    row = pack([[e.ids for e in trajectory(rng, steps)] for steps in (4, 2)])
    layout = Layout(row.trees, torch.tensor(row.positions), torch.tensor(row.ends))
    nodes = len(row.ids)
    seen = torch.zeros(nodes, nodes, dtype=torch.bool)
    for places in row.places:
        for depth, query in enumerate(places):
            first = 0 if window is None else max(0, depth - window + 1)
            seen[query, places[first : depth + 1]] = True
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, nodes, 16) for _ in range(3))
    with torch.no_grad():
        ours = flex_attention(query, key, value, block_mask=layout.blocks(window))
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(ours, theirs)
    # The same, put together from the parts of a CPU.
    parts = torch.zeros(nodes, nodes, dtype=torch.bool)
    for part in layout.parts():
        mask = layout.mask(part, window, torch.float32) == 0
        ancestors = part.fork - part.begin
        parts[part.first : part.last, part.begin : part.fork] = mask[:, :ancestors]
        parts[part.first : part.last, part.first : part.last] = mask[:, ancestors:]
    assert torch.equal(parts, seen)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gemma3-window", "mistral-window"])
def test_flex_attention_on_cuda(name: str) -> None:
    model = model_of(name, torch.float32).cuda()
    rng = random.Random(0)
    groups = [trajectory(rng, steps) for steps in (5, 1, 3)]
    assert packing_error(model, groups, packing="trie", pad_id=0, base=model) < 1e-4
    use_attention(model, TRIE)
    forward(model, collate(groups, packing="trie", pad_id=0).to("cuda")).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_state_space_model_shows_itself() -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
            initializer_range=0.3,
        )
    )
    groups = [trajectory(random.Random(0), 4), trajectory(random.Random(1), 2)]
    for packing in ("trie", "rows"):
        assert packing_error(model, groups, packing=packing, pad_id=0, base=model) > 1e-5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_head=2)), "own"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, head_dim=16)), "softcap"),
    ],
)
def test_other_attention_is_refused(model: Callable[[], nn.Module], message: str) -> None:
    model_ = model()
    attention = model_.config._attn_implementation
    groups = [trajectory(random.Random(0), 2)]
    with pytest.raises(ValueError, match=message):
        packing_error(model_, groups, packing="trie", pad_id=0, base=model_)
    assert model_.config._attn_implementation == attention
