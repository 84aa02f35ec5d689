"""The user's commands, one module a verb.  Runs in the caller's process."""
