"""Weights out of contrasts: LoRA adapters trained on pairs."""
