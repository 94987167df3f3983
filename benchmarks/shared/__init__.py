"""What the benchmarks share: problems, the optimizers that are compared, and the table of training runs."""
