"""Curvature that is looked at: what is measured, and how it is shown."""
