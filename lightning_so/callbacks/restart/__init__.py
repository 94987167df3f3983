"""A training that a cluster may stop at any time, and that goes on where it was."""
