"""Tiny real models for tests: their own tokenizer, random weights, a second to make."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steper.world.pretrain import byte_level_bpe

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
"""The shape of Llama-3.1-8B: what config.json says on the hub."""


def tiny_tokenizer(texts: Iterable[str], *, vocab_size: int = 600) -> PreTrainedTokenizerFast:
    return byte_level_bpe(texts, vocab_size=vocab_size)


def save_tiny_model(folder: Path, texts: Iterable[str], *, positions: int = 2048) -> Path:
    """Write a tiny random Llama with a tokenizer of the texts."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
