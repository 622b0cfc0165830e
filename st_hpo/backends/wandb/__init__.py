"""The W&B backend."""
