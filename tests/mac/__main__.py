"""`python -m tests.mac SOCKET METHOD [ARGUMENT...] [NAME=VALUE...]`: controls a running kernel.

    python -m tests.mac /tmp/mac/kernel plug loopback location=0x14200000 drivers="{0: 'hid'}"
    python -m tests.mac /tmp/mac/kernel state 1
    python -m tests.mac /tmp/mac/kernel unplug 1
    python -m tests.mac /tmp/mac/kernel switch capture_survives_owner=True

The methods are those of `Control` (kernel/control.py); results are printed.  Values are Python literals, or
else plain text.
"""

import ast
import sys
from pathlib import Path

from tests.mac.mac import Mac


def value(text: str) -> object:
    try:
        found: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return found


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    path, method, *rest = sys.argv[1:]
    named = dict(each.split("=", 1) for each in rest if "=" in each)
    mac = Mac(Path(path))
    result = mac.call(
        method,
        *(value(each) for each in rest if "=" not in each),
        **{name: value(text) for name, text in named.items()},
    )
    if result is not None:
        print(result)
    mac.close()


if __name__ == "__main__":
    main()
