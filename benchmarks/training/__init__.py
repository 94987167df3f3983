"""How low losses end, over learning rates, seeds and settings."""
