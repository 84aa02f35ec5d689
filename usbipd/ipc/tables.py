"""The tables of commands and events together, for channels, which carry both.  Used by every process."""

from collections.abc import Mapping
from typing import Final

from usbipd.ipc.children import COMMANDS_OF_PROCESSES, EVENTS_OF_PROCESSES
from usbipd.ipc.messages import Command, EventName
from usbipd.ipc.reports import COMMANDS_OF_PEOPLE, EVENTS_FOR_PEOPLE
from usbipd.ipc.row import CommandRow, EventRow

COMMANDS: Final[Mapping[Command, CommandRow]] = {**COMMANDS_OF_PEOPLE, **COMMANDS_OF_PROCESSES}
EVENTS: Final[Mapping[EventName, EventRow]] = {**EVENTS_FOR_PEOPLE, **EVENTS_OF_PROCESSES}
