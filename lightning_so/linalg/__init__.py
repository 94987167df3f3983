"""Tensors in, results out."""
