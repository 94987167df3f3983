"""Whole matrices: where they are, there and back."""
