"""Engines for a plain torch loop."""
