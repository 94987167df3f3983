"""One file a command: its function `command` gives the exit status; signature and docstring are options and help.

What takes long to import, a command imports when it runs: the help of all of them is made from their modules.
"""
