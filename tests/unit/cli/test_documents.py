"""The JSON documents: docs/json.md describes exactly what the code prints."""

import json
import re
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest

from tests.golden.messages import DEVICE
from tests.unit.cli import schema
from tests.unit.cli.reports import make_binding, make_counters, make_device, make_entry, make_status
from usbipd.cli import documents
from usbipd.cli.check_config import ConfigDocument
from usbipd.cli.documents import (
    BindDocument,
    DetachDocument,
    Document,
    HealthDocument,
    HistoryDocument,
    ListDocument,
    StatusDocument,
    UnbindDocument,
    render,
    render_line,
)
from usbipd.cli.list import list_remote
from usbipd.config import parse
from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import (
    CheckResult,
    CheckState,
    DeviceInfo,
    DeviceState,
    HistoryEvent,
    LeftOutInfo,
)

PLAIN_TYPES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}
MANUAL = (Path(__file__).parents[3] / "docs/json.md").read_text()


def described() -> dict[str, dict[str, str]]:
    """Structure -> field -> type, as docs/json.md has them."""
    structures: dict[str, dict[str, str]] = {}
    for section in re.split(r"^### ", MANUAL, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        structures[name] = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", body, re.MULTILINE))
    return structures


def type_in_words(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return type_in_words(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return "string"
    if get_origin(kind) in (UnionType, Union):
        return " or ".join("null" if part is NoneType else type_in_words(part) for part in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return f"list of {type_in_words(get_args(kind)[0])}"
    if issubclass(kind, msgspec.Struct):
        return str(kind.__name__)
    if issubclass(kind, StrEnum):
        return "string"
    return PLAIN_TYPES[kind]


def all_structures() -> set[type[msgspec.Struct]]:
    return set().union(*(structures_in(document) for document in Document.__subclasses__()))


def structures_in(kind: Any) -> set[type[msgspec.Struct]]:
    """`kind` if it is a structure, and all that it is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {kind}.union(*(structures_in(field.type) for field in msgspec.structs.fields(kind)))
    return set().union(*(structures_in(part) for part in get_args(kind)))


def test_the_manual_describes_every_field_of_every_document() -> None:
    assert described() == {
        structure.__name__: {
            field.name: type_in_words(field.type) for field in msgspec.structs.fields(structure)
        }
        for structure in all_structures()
    }


@pytest.mark.parametrize("words", [DeviceState, HistoryEvent, CheckState])
def test_the_manual_names_the_format_and_every_word(words: type[StrEnum]) -> None:
    assert f"`format` is {documents.FORMAT}." in MANUAL
    assert [word for word in words if f"`{word}`" not in MANUAL] == []


def test_the_manual_says_how_schemas_are_made() -> None:
    assert f"    {schema.COMMAND}\n" in MANUAL


@pytest.mark.parametrize(
    "document",
    [
        ListDocument(
            devices=[make_device(), make_device("1-1", manufacturer=None)],
            bindings=[make_binding()],
            left_out=[LeftOutInfo(busid="1-2", reason="why", code="no-answer", advice=None)],
        ),
        BindDocument(
            binding=make_binding(allow=["::1"]),
            devices=[make_device(state=DeviceState.ATTACHED, counters=make_counters())],
        ),
        UnbindDocument(bindings=[make_binding()], busids=["1-1", "3-1.4"], still_shared=["3-2"]),
        DetachDocument(busid="3-1", client="192.0.2.7:51234"),
        StatusDocument(status=make_status([make_device(product="\x1b[2J 日本 \ud7ff")])),
        HistoryDocument(entries=[make_entry(2, reason="why"), make_entry(1, busid=None)]),
        HealthDocument(
            checks=[CheckResult(name="store", state=CheckState.FAILED, message="m", steps=["1", "2"])]
        ),
        ConfigDocument(file=None, settings=parse("[[access]]\nbusid = '1-1'\nallow = ['::1']", "file")),
        documents.error_document(UsbipdError("wrong", code="busy", advice="wait")),
    ],
    ids=lambda document: type(document).__name__,
)
def test_documents_come_back_as_they_were(document: Document) -> None:
    text = render(document)
    assert json.loads(text)["format"] == 1
    assert next(iter(json.loads(text))) == "format"
    assert text.endswith("}\n")
    assert msgspec.json.decode(text, type=type(document)) == document
    line = render_line(document)
    assert json.loads(line) == json.loads(text)
    assert line.index("\n") == len(line) - 1


def test_the_form_of_a_device() -> None:
    device = json.loads(render(ListDocument(devices=[make_device()], bindings=[], left_out=[])))["devices"][0]
    assert device["vendor_id"] == 0x0781
    assert device["state"] == "shared"
    assert device["client"] is None
    assert device.keys() == set(DeviceInfo.__struct_fields__)


def test_a_remote_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("usbipd.cli.list.fetch_devlist", lambda host, port, timeout: (DEVICE,))
    list_remote("example.org", 3240, timeout=1, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["host"], document["port"]) == ("example.org", 3240)
    assert document["devices"][0]["vendor_id"] == DEVICE.idVendor
    assert len(document["devices"][0]["interfaces"]) == len(DEVICE.interfaces)
