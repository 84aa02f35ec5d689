"""docs/schema/ matches the types."""

import json

import pytest

from tests.unit.cli import schema
from usbipd.cli.documents import Document

SCHEMAS = schema.schemas()


def test_one_schema_for_each_document() -> None:
    assert len(SCHEMAS) == len(Document.__subclasses__())
    assert {path.name for path in schema.DIRECTORY.iterdir()} == set(SCHEMAS), f"run {schema.COMMAND}"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_matches_the_types(name: str) -> None:
    written = (schema.DIRECTORY / name).read_text(encoding="utf-8")
    assert written == SCHEMAS[name], f"run {schema.COMMAND}"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_requires_every_field_and_allows_new_ones(name: str) -> None:
    definitions = json.loads(SCHEMAS[name])["$defs"]
    objects = [each for each in definitions.values() if each.get("type") == "object"]
    assert objects
    for each in objects:
        assert each["required"] == list(each["properties"])
        assert "additionalProperties" not in each


def test_the_status_is_described_in_full() -> None:
    definitions = json.loads(SCHEMAS["status.schema.json"])["$defs"]
    assert definitions["DeviceState"]["enum"] == ["attached", "failed", "not shared", "shared"]
    assert {
        "StatusResult",
        "DeviceInfo",
        "Counters",
        "Rate",
        "Latency",
        "LoggedError",
    } <= definitions.keys()
