"""The machine: it works around each step of an optimizer; docs/explanation/house.md shows its floors."""
