"""Teach a small language model multi-step retrieval-augmented reasoning (StepER, EMNLP 2025)."""
