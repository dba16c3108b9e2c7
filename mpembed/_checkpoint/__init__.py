"""Checkpoints: one safetensors file whose metadata holds a manifest; resuming is bit-exact."""
