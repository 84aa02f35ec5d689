"""The privileged process: decides what is shared, starts the others, keeps what is known."""
