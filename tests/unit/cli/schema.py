"""JSON Schemas of the documents, generated from their types.  Run as a program, it writes docs/schema/."""

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from usbipd.cli import bug_report_document, check_config
from usbipd.cli.documents import Document

DIRECTORY: Final = Path(__file__).parents[3] / "docs/schema"
COMMAND: Final = ".venv/bin/python -m tests.unit.cli.schema"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

assert issubclass(check_config.ConfigDocument, Document), (
    "imported, because it is one of the subclasses below"
)
assert issubclass(bug_report_document.ReportDocument, Document), "likewise"


def file_name(document: type[Document]) -> str:
    """`RemoteListDocument` is described in `remote-list.schema.json`."""
    name = document.__name__.removesuffix("Document")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower() + ".schema.json"


def schemas() -> dict[str, str]:
    """File name -> content."""
    return {
        file_name(document): json.dumps(_schema(document), indent=2) + "\n"
        for document in sorted(Document.__subclasses__(), key=file_name)
    }


def _schema(document: type[Document]) -> dict[str, Any]:
    schema = msgspec.json.schema(document)
    for structure in schema["$defs"].values():
        if structure.get("type") == "object":
            # The types describe messages between our processes; documents have every field and may get
            # new ones.
            structure.pop("additionalProperties", None)
            structure["required"] = list(structure["properties"])
            for field in structure["properties"].values():
                field.pop("default", None)
    return {"$schema": DIALECT, **schema}


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for old in DIRECTORY.iterdir():
        old.unlink()
    for name, text in schemas().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
