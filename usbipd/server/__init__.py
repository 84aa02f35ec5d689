"""The unprivileged process that listens on the network and reads OP_* messages."""
