"""Whole trainings: strategies, situations, faults and options, where several rooms work together."""
