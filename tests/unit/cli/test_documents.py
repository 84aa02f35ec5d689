"""The JSON documents: docs/json.md describes exactly what the code prints."""

import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import msgspec
import pytest

from tests.golden.messages import DEVICE
from tests.unit.cli.reports import make_counters, make_device, make_status
from usbipd.cli import documents
from usbipd.cli.documents import BindDocument, Document, ListDocument, StatusDocument, UnbindDocument, render
from usbipd.cli.list import list_remote
from usbipd.errors import UsbipdError
from usbipd.ipc.messages import DeviceReport, DeviceState

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
    if get_origin(kind) is UnionType:
        return " or ".join("null" if part is NoneType else type_in_words(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {type_in_words(get_args(kind)[0])}"
    if issubclass(kind, msgspec.Struct):
        return str(kind.__name__)
    if issubclass(kind, DeviceState):
        return "string"
    return PLAIN_TYPES[kind]


def structures_in(kind: Any) -> set[type[msgspec.Struct]]:
    """`kind` if it is a structure, and all that it is made of."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {kind}.union(*(structures_in(field.type) for field in msgspec.structs.fields(kind)))
    return set().union(*(structures_in(part) for part in get_args(kind)))


def test_the_manual_describes_every_field_of_every_document() -> None:
    everything = set().union(*(structures_in(document) for document in Document.__subclasses__()))
    assert described() == {
        structure.__name__: {
            field.name: type_in_words(field.type) for field in msgspec.structs.fields(structure)
        }
        for structure in everything
    }


def test_the_manual_names_the_format_and_every_state() -> None:
    assert f"`format` is {documents.FORMAT}." in MANUAL
    assert [state for state in DeviceState if f"`{state}`" not in MANUAL] == []


@pytest.mark.parametrize(
    "document",
    [
        ListDocument(devices=[make_device(), make_device("1-1", manufacturer=None)]),
        BindDocument(device=make_device(state=DeviceState.ATTACHED, counters=make_counters())),
        UnbindDocument(busids=["1-1", "3-1.4"]),
        StatusDocument(status=make_status([make_device(product="\x1b[2J 日本 \ud7ff")])),
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


def test_the_form_of_a_device() -> None:
    device = json.loads(render(ListDocument(devices=[make_device()])))["devices"][0]
    assert device["vendor_id"] == 0x0781
    assert device["state"] == "shared"
    assert device["client"] is None
    assert device.keys() == set(DeviceReport.__struct_fields__)


def test_a_remote_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("usbipd.cli.list.fetch_devlist", lambda host, port, timeout: (DEVICE,))
    list_remote("example.org", 3240, timeout=1, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["host"], document["port"]) == ("example.org", 3240)
    assert document["devices"][0]["vendor_id"] == DEVICE.idVendor
    assert len(document["devices"][0]["interfaces"]) == len(DEVICE.interfaces)
