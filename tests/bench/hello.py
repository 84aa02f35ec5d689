"""The least that the executable of a Python program does: packed by hello.spec, for tests/bench/binary.py."""

print("hello")
