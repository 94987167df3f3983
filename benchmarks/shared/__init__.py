"""What the benchmarks share: problems, the optimizers that are compared, and how figures are printed and written."""
