"""usbipd.toml: what is right is taken, what is wrong is named with file, key and what would be right."""

from pathlib import Path

import pytest

from usbipd.config import Limits, ListenAddress, ServerConfig, load, parse, parse_listen
from usbipd.errors import UsageError


def test_an_empty_file_has_the_defaults() -> None:
    config = parse("", "usbipd.toml")
    assert config == ServerConfig()
    assert config.addresses == (ListenAddress("127.0.0.1", 3240),), "nobody else reaches it unless asked for"
    assert config.limits == Limits(
        max_connections=128, max_connections_per_address=32, handshake_timeout=10.0, transfer_budget=64 << 20
    )


def test_all_keys(tmp_path: Path) -> None:
    file = tmp_path / "usbipd.toml"
    file.write_text(
        'listen = ["0.0.0.0", "[::1]:4000"]\nuser = "somebody"\nlog_level = "debug"\n'
        "[limits]\nmax_connections = 5\nmax_connections_per_address = 2\nhandshake_timeout = 3\n"
        "transfer_budget = 52428800\n"
    )
    config = load(file)
    assert config.addresses == (ListenAddress("0.0.0.0", 3240), ListenAddress("::1", 4000))
    assert (config.user, config.log_level) == ("somebody", "debug")
    assert config.limits == Limits(
        max_connections=5, max_connections_per_address=2, handshake_timeout=3.0, transfer_budget=50 << 20
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listne = []", "unknown key listne: did you mean 'listen'?"),
        ("[limits]\nmax_conections = 1", "unknown key limits.max_conections: did you mean 'max_connections"),
        ("zzz = 1", "unknown key zzz: known are listen, user, log_level, limits"),
        ("listen = []", "listen: expected `array` of length >= 1"),
        ('listen = "127.0.0.1"', "listen: expected `array`, got `str`"),
        ("listen = [3240]", "listen[0]: expected `str`, got `int`"),
        ('listen = ["127.0.0.1", "localhost"]', "listen[1]: 'localhost' is not an address to listen on"),
        ('log_level = "loud"', "log_level: invalid enum value 'loud'"),
        ('user = ""', "user: expected `str` of length >= 1"),
        ("limits = 5", "limits: expected `object`, got `int`"),
        ("[limits]\nmax_connections = 0", "limits.max_connections: expected `int` >= 1"),
        ("[limits]\nmax_connections = true", "limits.max_connections: expected `int`, got `bool`"),
        ("[limits]\nhandshake_timeout = 0", "limits.handshake_timeout: expected `float` > 0"),
        ("[limits]\ntransfer_budget = 1000", "limits.transfer_budget: expected `int` >= 41943040"),
        ("listen = [", "not TOML: "),
    ],
)
def test_a_mistake_is_named(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "/etc/usbipd.toml")
    assert str(caught.value).startswith(f"/etc/usbipd.toml: {complaint}")
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "usbipd.toml"
    file.write_bytes(b"user = '\xff'")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 8\)"):
        load(file)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 3240),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("::1", "::1", 3240),
        ("[::]", "::", 3240),
        ("[2001:DB8::1]:3241", "2001:db8::1", 3241),
        ("fe80::1%eth0", "fe80::1%eth0", 3240),
    ],
)
def test_listen(text: str, host: str, port: int) -> None:
    address = parse_listen(text)
    assert address == (host, port)
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":3240", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣", "1.2.3:4",
     "[127.0.0.1]:1", "[::1", "::1]:1", "[::1]:x", "127.0.0.1:1:2", "*",
     "224.0.0.1", "[ff02::1]:1", "255.255.255.255", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_not_to_listen_on(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address to listen on"):
        parse_listen(text)
