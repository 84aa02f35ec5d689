"""Scripted peers of commands: an extension and a USB/IP server, each in a thread."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from usbipd.cli import device
from usbipd.cli.usb_ids import UsbIds
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message

Answer = Callable[[Request], Message | UsbipdError]


@contextmanager
def serving(listener: socket.socket, *talks: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept a connection on `listener` for each of `talks` in turn, in a thread.

    Their exceptions fail the test.
    """
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            for talk in talks:
                connection, _address = listener.accept()
                with connection:
                    talk(connection)
        except BaseException as error:  # raised below
            errors.append(error)

    thread = threading.Thread(target=serve)
    with listener:
        listener.settimeout(10)
        thread.start()
        try:
            yield
        finally:
            thread.join()
    assert not errors


def drain(connection: socket.socket) -> None:
    """Read until the command disconnects."""
    with contextlib.suppress(ConnectionResetError):  # it left unread data
        while connection.recv(4096):
            pass


@pytest.fixture(autouse=True)
def usb_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the system's usb.ids by a short list."""
    path = tmp_path / "usb.ids"
    path.write_text(
        "0951  Kingston Technology\n\t1666  DataTraveler 100 G3\n\t1624  Kingston Technology G2\n"
    )
    monkeypatch.setattr(device, "USB_IDS", UsbIds([str(path)]))


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set local time to UTC."""
    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def listener_at(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def scripted_extension(path: Path, answer: Answer) -> AbstractContextManager[None]:
    """An extension on `path` for one connection; `answer(request)` returns its answer."""

    def converse(connection: socket.socket) -> None:
        channel = BlockingChannel(connection, "scripted extension", PEOPLE)
        while (item := _receive(channel)) is not None:
            assert isinstance(item, Request)
            channel.respond(item, answer(item))

    return serving(listener_at(path), converse)


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def extension(socket_path: Path) -> Callable[..., object]:
    """`with extension(answer)`: an extension on `socket_path`; `answer(request)` returns its answer.

    `with extension(talk=...)` scripts the bare connection instead, `talks=[...]` several in a row.
    """

    def start(
        answer: Answer | None = None,
        *,
        talk: Callable[[socket.socket], None] | None = None,
        talks: Sequence[Callable[[socket.socket], None]] = (),
    ) -> object:
        if answer is not None:
            return scripted_extension(socket_path, answer)
        return serving(listener_at(socket_path), *(talks or ([] if talk is None else [talk])))

    return start


def _receive(channel: BlockingChannel) -> object:
    try:
        return channel.receive(10)
    except IPCError as error:
        if error.code == "gone":
            return None
        raise
