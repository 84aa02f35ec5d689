"""`python -m tests.fuzz TARGET FILE...`: runs inputs of a fuzzer, without a fuzzer, in any Python.

For the target `libusb`, `LD_LIBRARY_PATH` must name the directory of its fake (`make fuzz` leaves it in
build/fuzz).
"""

import sys
from pathlib import Path

from tests.fuzz.targets import target

run = target(sys.argv[1])
for name in sys.argv[2:]:
    run(Path(name).read_bytes())
    print(f"{name}: the invariant holds")
