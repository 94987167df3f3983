"""A stated share of time: what is measured, what it buys, and what is said of it."""
