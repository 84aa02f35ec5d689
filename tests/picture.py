"""`make picture`: draws the terminal in the README, docs/terminal.svg, from a run of the real programs.

`python -m tests.picture FILE`.  Starts a daemon with simulated devices, attaches one as a client, and draws
the output of the commands: no text in the picture is written by hand.
"""

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from tests.client import Client
from tests.integration.daemon import Daemon

DEVICES: Final = "mass-storage,keyboard,serial,camera"
ATTACHED: Final = "serial"
COMMANDS: Final[Sequence[Sequence[str]]] = (("list",), ("status",))
"""Each command with its arguments, without `usbipd`."""

COLUMNS: Final = 88
"""Width of the terminal."""
ECHO_IN, ECHO_OUT = 0x81, 0x01  # endpoints of the simulated serial port, usbipd/simulated/serial.py
PACKET: Final = 512

# Units of the picture: characters of a 14-unit font are 8.4 wide.
ADVANCE, LINE, MARGIN, BAR = 8.4, 19, 18, 30

STYLE: Final = """
  rect { fill: #f6f8fa; stroke: #d0d7de }
  circle { fill: #d0d7de }
  text { fill: #1f2328; font-size: 14px }
  text { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .command { font-weight: bold; fill: #0550ae }
  .heading { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    rect { fill: #161b22; stroke: #30363d }
    circle { fill: #30363d }
    text { fill: #e6edf3 }
    .command { fill: #79c0ff }
    .heading { fill: #8b949e }
  }
"""


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m tests.picture FILE", file=sys.stderr)
        return 2
    os.environ["COLUMNS"] = str(COLUMNS)
    Path(sys.argv[1]).write_text(draw(transcript()), encoding="utf-8")
    return 0


def transcript() -> list[str]:
    """The lines of the terminal: prompts with commands and their output, separated by empty lines."""
    with tempfile.TemporaryDirectory(prefix="usbipd-picture-") as directory:
        daemon = Daemon(Path(directory), DEVICES)
        try:
            with Client(daemon.host, daemon.port).import_device(daemon.busid(ATTACHED)) as session:
                reads = [session.submit(ECHO_IN, length=PACKET) for _ in range(64)]
                for _ in reads:
                    session.bulk_out(ECHO_OUT, bytes(PACKET))
                for seqnum in reads:
                    session.wait_submit(seqnum)
                shown: list[str] = []
                for command in COMMANDS:
                    done = daemon.usbipd(*command)
                    if done.returncode != 0:
                        raise RuntimeError(f"usbipd {' '.join(command)}: {done.stderr}")
                    shown += [f"$ usbipd {' '.join(command)}", *done.stdout.rstrip().splitlines(), ""]
            daemon.stop()
        finally:
            daemon.kill()
    return shown[:-1]


def draw(lines: Sequence[str]) -> str:
    """A self-contained SVG document of `lines`, in the reader's colour scheme.

    Each cell of a table has its own position, so columns line up in any font.
    """
    width = 2 * MARGIN + ADVANCE * max(map(len, lines))
    height = BAR + LINE * len(lines) + MARGIN
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>A terminal: {escape(', '.join(commands))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>',
        *(f'<circle cx="{MARGIN + 18 * number}" cy="16" r="5"/>' for number in range(3)),
    ]
    for number, line in enumerate(lines, 1):
        kind = ' class="command"' if line.startswith("$ ") else ' class="heading"' if line.isupper() else ""
        for cell in re.finditer(r"\S+( \S+)*", line):
            x, length = MARGIN + ADVANCE * cell.start(), ADVANCE * len(cell[0])
            place = f'x="{x:.1f}" y="{BAR + LINE * number - 5}" textLength="{length:.1f}"'
            parts.append(f"<text {place}{kind}>{escape(cell[0])}</text>")
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    sys.exit(main())
