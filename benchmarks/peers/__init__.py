"""Beside what a user can install: other packages' optimizers and ours, side by side."""
