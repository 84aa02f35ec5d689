"""The privileged process: decides what is shared, starts the other processes, and stores the state."""
