"""Blocks in stacks, and how each takes part in a step."""
