"""The command line, `lightning-so`: one file a command, in `commands/`."""
