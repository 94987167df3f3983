"""Curvature and the health of layers that are looked at: what is measured, and how it is shown."""
