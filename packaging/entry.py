"""Where the executable of PyInstaller begins: before the front door, it looks after its unpacked files.

Runs in every process of that executable.
"""

import sys

from usbipd import frozen
from usbipd.__main__ import main

frozen.begin()
sys.exit(main())
