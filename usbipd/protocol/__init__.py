"""USB/IP 1.1.1 without I/O: bytes in, events out.  Used by the server, the CLI and the tests."""
