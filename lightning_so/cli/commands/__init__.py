"""One file a command: its function `command` gives the exit status; signature and docstring are options and help."""
