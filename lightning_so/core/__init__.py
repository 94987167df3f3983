"""The machine: it works around each step of an optimizer; rooms on floors, which docs/how-it-works.md shows."""
