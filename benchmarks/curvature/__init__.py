"""Curvature-vector products, and what is built on them without factors: few directions, saddles, sharpness."""
