"""Entry point of the PyInstaller executable: takes care of its unpacked files, then runs the front door.

Runs in every process of that executable.
"""

import sys

from usbipd import frozen
from usbipd.__main__ import main

frozen.begin()
sys.exit(main())
