"""The user's commands, one module a command.  Runs in the caller's process."""
