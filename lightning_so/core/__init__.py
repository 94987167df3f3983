"""The machine: it works around each step of an optimizer; docs/explanation/how-it-works.md shows its floors."""
