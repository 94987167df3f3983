"""Scripts that measure, a folder a subject, each with its results beside it: see README.md."""
