"""tests/words.py finds words that read as translated, names a better one, and holds the tree to a limit."""

from pathlib import Path

import pytest

from tests import words

RULES = words.load()


def found(line: str) -> list[str]:
    return [hit.word for hit in words.hits([line], RULES.words, "file")]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a log that nobody reads", "nobody"),
        ("Whoever reaches the port", "Whoever"),
        ("# mended by hand", "mended"),
        ("it gives the device back", "gives the device back"),
        ("the devices are given back", "given back"),
        ("a directory of its own", "of its own"),
        ("it is tried again by itself", "again by itself"),
        ("a user who says who he is", "he"),
        ("tried again and again", "again and again"),
    ],
)
def test_words_that_read_as_translated(line: str, word: str) -> None:
    assert found(line) == [word]


@pytest.mark.parametrize(
    "line",
    [
        "the server runs as nobody",
        'user = "nobody"',
        "the user `nobody`",
        "the header, here and there",
        "recommended amendment",
        "usb_hcd_giveback_urb",
        "the process itself",
    ],
)
def test_words_that_are_english(line: str) -> None:
    assert found(line) == []


def test_a_hit_has_its_place_and_a_better_word() -> None:
    [hit] = words.hits(["fine", "for want of memory"], RULES.words, "usbipd/x.py")
    assert hit == ("usbipd/x.py:2", "for want of", "for lack of, out of")


@pytest.mark.skipif(not (words.ROOT / ".git").exists(), reason="git lists the files")
def test_all_of_the_tree_is_read() -> None:
    names = {str(path.relative_to(words.ROOT)) for path in words.tree()}
    places = ["README.md", "Makefile", "usbipd/log.py", "cython/pump.pyx", "docs/index.md", ".ci/run"]
    places += [
        "man/usbipd.toml.5",
        "packaging/usbipd.toml",
        ".github/workflows/ci.yml",
        "tests/mac/README.md",
    ]
    assert names >= set(places)
    assert not any(name.endswith((".svg", ".json", ".patch")) for name in names)


@pytest.mark.parametrize(("limit", "code"), [("500", 0), ("499", 1)])
def test_more_than_the_limit_fails(
    limit: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.toml").write_text(f'limit = {limit}\n[words]\n"anew" = "again"\n')
    (tmp_path / "text.md").write_text("Open it anew.\nClose it.\n")
    monkeypatch.setattr(words, "ROOT", tmp_path)
    monkeypatch.setattr(words, "LIST", tmp_path / "words.toml")
    monkeypatch.setattr(words, "tree", lambda: [tmp_path / "text.md"])
    assert words.main() == code
    assert capsys.readouterr().out.splitlines()[0] == "text.md:1: 'anew': better again"
