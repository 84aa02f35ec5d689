"""Which usb.ids is packed: that of a release, fetched and checked by hash, or the system's."""

import hashlib
from pathlib import Path

import pytest
import usb_ids
from usb_ids import FetchError

LIST = b"#\n# Version: 2026.06.10\r\n0001  Vendor\n"


@pytest.fixture(autouse=True)
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a fetched file; the system has none."""
    path = tmp_path / "build/usb.ids"
    monkeypatch.setattr(usb_ids, "FETCHED", path)
    monkeypatch.setattr(usb_ids, "SYSTEM", ())
    return path


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file at the URL, with the hash of a release."""
    path = tmp_path / "upstream"
    path.write_bytes(LIST)
    monkeypatch.setattr(usb_ids, "URL", path.as_uri())
    monkeypatch.setattr(usb_ids, "SHA256", hashlib.sha256(LIST).hexdigest())
    return path


@pytest.mark.usefixtures("upstream")
def test_the_file_of_a_release_is_fetched(fetched: Path) -> None:
    fetched.parent.mkdir()
    fetched.write_bytes(b"of an earlier release")
    usb_ids.fetch()
    assert fetched.read_bytes() == LIST
    assert list(fetched.parent.iterdir()) == [fetched]


def test_it_is_fetched_once(upstream: Path, fetched: Path) -> None:
    usb_ids.fetch()
    upstream.unlink()
    usb_ids.fetch()
    assert fetched.read_bytes() == LIST


def test_a_file_with_another_hash_is_not_kept(upstream: Path, fetched: Path) -> None:
    upstream.write_bytes(LIST + b"0002  Another\n")
    with pytest.raises(FetchError, match=rf"has the SHA-256 [0-9a-f]{{64}}, not {usb_ids.SHA256}$"):
        usb_ids.fetch()
    assert not fetched.exists()


def test_a_failed_download_is_reported(upstream: Path, fetched: Path) -> None:
    upstream.unlink()
    with pytest.raises(FetchError, match=rf"^{upstream.as_uri()} cannot be fetched: .*No such file"):
        usb_ids.fetch()
    assert not fetched.exists()


def test_the_fetched_file_is_preferred_to_the_systems(
    fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system"
    monkeypatch.setattr(usb_ids, "SYSTEM", (str(tmp_path), str(system)))
    assert usb_ids.find() is None
    system.write_bytes(LIST)
    assert usb_ids.find() == system
    fetched.parent.mkdir()
    fetched.write_bytes(LIST)
    assert usb_ids.find() == fetched


def test_its_version(tmp_path: Path) -> None:
    path = tmp_path / "usb.ids"
    path.write_bytes(LIST)
    assert usb_ids.version(path) == "2026.06.10"
    path.write_bytes(b"0001  # Version: 1\n")
    assert usb_ids.version(path) is None
