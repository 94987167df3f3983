"""Runs that are killed and resumed, against one that never stopped."""
