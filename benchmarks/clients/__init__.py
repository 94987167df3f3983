"""Trainings of packages that are built on Lightning, with and without second order."""
