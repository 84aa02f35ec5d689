"""usbipd.toml: right values are accepted, errors name file, line, key and what would be right."""

import os
import re
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbipd.addresses import ListenAddress
from usbipd.config import _RIGHT, AccessRule, Limits, ServerConfig, load, parse
from usbipd.errors import UsageError
from usbipd.usb.identity import DeviceRule


def test_an_empty_file_has_the_defaults() -> None:
    config = parse("", "usbipd.toml")
    assert config == ServerConfig()
    assert config.addresses == (ListenAddress("127.0.0.1", 3240),), "nobody else reaches it unless asked for"
    assert (config.allow, config.access) == ((), ())
    assert (config.log_level, config.log_to) == ("info", "stderr")
    assert config.uids == range(65537, 100000)
    assert config.confine == "auto"
    assert not config.offer_imported, "two hosts could share one device in a circle"
    assert config.limits == Limits(
        max_connections=128,
        max_connections_per_address=32,
        handshake_timeout=10.0,
        lost_client_timeout=120,
        transfer_budget=64 << 20,
        device_memory="auto",
        send_buffer=0,
    )


def test_the_default_file_has_every_key_with_its_default() -> None:
    text = (Path(__file__).parents[2] / "packaging/usbipd.toml").read_text()
    assert parse(text, "usbipd.toml") == ServerConfig()
    chosen = {"allow", "user"}  # their lines are examples
    for key, default in [
        *((key, getattr(ServerConfig(), key)) for key in ServerConfig.__struct_fields__),
        *((key, getattr(Limits(), key)) for key in Limits.__struct_fields__),
    ]:
        if key in {"limits", "access"}:
            assert re.search(rf"^(?:# )?\[+{key}\]", text, re.MULTILINE)
            continue
        [value] = re.findall(rf"^# {key} = (.+)$", text, re.MULTILINE)[:1]
        table = "[limits]\n" if key in Limits.__struct_fields__ else ""
        config = parse(f"{table}{key} = {value}", "usbipd.toml")
        assert key in chosen or getattr(config.limits if table else config, key) == default, key


ALL_KEYS = """\
listen = ["0.0.0.0", "[::1]:4000"]
allow = [
    "192.168.1.0/24",  # this house
    "::1",
]
user = "nobody"
worker_uids = "70000-70099"
confine = "require"
log_level = "debug"
log_to = "syslog"
offer_imported = true

[limits]
max_connections = 5
max_connections_per_address = 2
handshake_timeout = 3
lost_client_timeout = 60
transfer_budget = 52428800
device_memory = "off"
send_buffer = 131072

[[access]]
hardware_id = "0781:5567"
serial = "4C53"
allow = ["192.168.1.7"]

[[access]]
busid = "3-2.4"
allow = ["192.168.1.8", "::1", "::1"]
"""


def test_all_keys(tmp_path: Path) -> None:
    file = tmp_path / "usbipd.toml"
    file.write_text(ALL_KEYS)
    config = load(file)
    assert config.addresses == (ListenAddress("0.0.0.0", 3240), ListenAddress("::1", 4000))
    assert config.allow == ("192.168.1.0/24", "::1")
    assert (config.user, config.log_level, config.log_to) == ("nobody", "debug", "syslog")
    assert config.uids == range(70000, 70100)
    assert config.offer_imported
    assert config.confine == "require"
    assert config.limits == Limits(
        max_connections=5,
        max_connections_per_address=2,
        handshake_timeout=3.0,
        lost_client_timeout=60,
        transfer_budget=50 << 20,
        device_memory="off",
        send_buffer=131072,
    )
    assert config.access == (
        AccessRule(hardware_id="0781:5567", serial="4C53", allow=("192.168.1.7",)),
        AccessRule(busid="3-2.4", allow=("192.168.1.8", "::1", "::1")),
    )


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ('busid = "1-1"', DeviceRule(busid="1-1")),
        ('hardware_id = "0781:ABCD"', DeviceRule(0x0781, 0xABCD)),
        ('hardware_id = "0781:5567"\nserial = "x"', DeviceRule(0x0781, 0x5567, "x")),
        ('busid = "1-1"\nserial = "x"', DeviceRule(serial="x", busid="1-1")),
        ('busid = "1-1"\nhardware_id = "0000:0000"', DeviceRule(0, 0, busid="1-1")),
    ],
)
def test_the_devices_of_an_access_table(written: str, rule: DeviceRule) -> None:
    [access] = parse(f'[[access]]\n{written}\nallow = ["::1"]', "usbipd.toml").access
    assert access.rule == rule


ALLOW = '\nallow = ["::1"]'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        # unknown keys
        ("listne = []", ", line 1: listne: unknown key: did you mean 'listen'?"),
        (
            "[limits]\nmax_conections = 1",
            ", line 2: limits.max_conections: unknown key: did you mean 'max_connections'?",
        ),
        (f'[[access]]\nbus_id = "1-1"{ALLOW}', ", line 2: access[0].bus_id: unknown key: did you mean 'bus"),
        (
            "zzz = 1",
            ", line 1: zzz: unknown key: known keys are listen, allow, user, worker_uids, confine, "
            "log_level, "
            "log_to, offer_imported, limits, access",
        ),
        ("[limits]\nzzz = 1", ", line 2: limits.zzz: unknown key: known keys are max_connections, max_con"),
        ("[[access]]\nzzz = 1", ", line 2: access[0].zzz: unknown key: known keys are busid, hardware_id"),
        ("[[acess]]\n[[acess]]", ", line 1: acess: unknown key: did you mean 'access'?"),
        ("max_connections = 1", ", line 1: max_connections: unknown key: it belongs in [limits]"),
        ('[limits]\nlog_to = "syslog"', ", line 2: limits.log_to: unknown key: it belongs above all tables"),
        ('busid = "1-1"', ", line 1: busid: unknown key: it belongs in [[access]]"),
        ('"zz\\u001b" = 1', ": 'zz\\x1b': unknown key: known keys are"),
        # types and ranges
        ("listen = []", ", line 1: listen: expected `array` of length >= 1: write listen = ["),
        ('listen = "127.0.0.1"', ", line 1: listen: expected `array`, got `str`: write listen = ["),
        ("listen = [3240]", ", line 1: listen[0]: expected `str`, got `int`: write listen = ["),
        ('log_level = "loud"', ", line 1: log_level: invalid enum value 'loud': write \"debug\""),
        (
            'log_to = "file"',
            ", line 1: log_to: unknown log destination 'file': use "
            "stderr, syslog, or the absolute path of a file",
        ),
        (
            "log_to = 1",
            ', line 1: log_to: expected `str`, got `int`: write "stderr", "syslog" or "/var/log/usbipd.log"',
        ),
        ('user = ""', ", line 1: user: expected `str` of length >= 1: write user = "),
        (
            "worker_uids = 65537",
            ', line 1: worker_uids: expected `str`, got `int`: write worker_uids = "65537-99999"',
        ),
        (
            'worker_uids = "65537"',
            ", line 1: worker_uids: '65537' cannot be the user ids of workers: write two numbers, FIRST-LAST",
        ),
        ('confine = "on"', ', line 1: confine: invalid enum value \'on\': write "auto", "require" or "off"'),
        ("confine = true", ", line 1: confine: expected `str`, got `bool`: write \"auto\""),
        ("limits = 5", ", line 1: limits: expected `table`, got `int`: write [limits]"),
        ("\n[[limits]]", ", line 2: limits: expected `table`, got `array`: write [limits]"),
        ("[access]", ", line 1: access: expected `array`, got `table`: write [[access]]"),
        ("access = [1]", ", line 1: access[0]: expected `table`, got `int`: write [[access]]"),
        ("[limits]\nmax_connections = 0", ", line 2: limits.max_connections: expected `int` >= 1: write max"),
        (f"[limits]\nmax_connections = {10**30}", ", line 2: limits.max_connections: expected `int` <= 4096"),
        ("[limits]\nmax_connections = true", ", line 2: limits.max_connections: expected `int`, got `bool`"),
        ("[limits]\nhandshake_timeout = 0", ", line 2: limits.handshake_timeout: expected `float` > 0"),
        ("[limits]\nhandshake_timeout = nan", ", line 2: limits.handshake_timeout: expected `float` > 0"),
        ("[limits]\nlost_client_timeout = 9", ", line 2: limits.lost_client_timeout: expected `int` >= 10"),
        ("[limits]\nlost_client_timeout = 7201", ", line 2: limits.lost_client_timeout: expected `int` <="),
        ("[limits]\ndevice_memory = true", ", line 2: limits.device_memory: expected `str`"),
        ("[limits]\nsend_buffer = -1", ", line 2: limits.send_buffer: expected `int` >= 0"),
        ("[limits]\nlost_client_timeout = 60.5", ", line 2: limits.lost_client_timeout: expected `int`, got"),
        ("[limits]\ntransfer_budget = 1000", ", line 2: limits.transfer_budget: expected `int` >= 41943040"),
        ("allow = [1]", ", line 1: allow[0]: expected `str`, got `int`: write allow = ["),
        (f"[[access]]\nbusid = 1{ALLOW}", ", line 2: access[0].busid: expected `str | null`, got `int`: "),
        # addresses
        (
            'listen = ["127.0.0.1", "localhost"]',
            ", line 1: listen[1]: 'localhost' is not an address to listen on: give a numeric address",
        ),
        (
            'allow = ["::1", "192.168.1.7/24"]',
            ", line 1: allow[1]: '192.168.1.7/24' is not an address or a network of clients: "
            "it has bits set after the first 24, write 192.168.1.0/24",
        ),
        (
            '[[access]]\nbusid = "1-1"\nallow = ["home"]',
            ", line 3: access[0].allow[0]: 'home' is not an address or a network of clients: names are not",
        ),
        # access tables
        (f"[[access]]{ALLOW}", ", line 1: access[0]: it matches no device: write busid or hardware_id"),
        (
            f'[[access]]\nserial = "x"{ALLOW}',
            ", line 1: access[0]: it matches no device: write busid or hardware_id, or both beside",
        ),
        ('[[access]]\nbusid = "1-1"', ", line 1: access[0]: it allows no client: write allow = ["),
        ('[[access]]\nbusid = "1-1"\nallow = []', ", line 1: access[0]: it allows no client: write allow ="),
        (f'[[access]]\nbusid = "1_1"{ALLOW}', ", line 2: access[0].busid: '1_1' is not a busid: it is BUS"),
        (f'[[access]]\nbusid = "٣-1"{ALLOW}', ", line 2: access[0].busid: '٣-1' is not a busid"),
        (f'[[access]]\nbusid = "1-{"1." * 15}1"{ALLOW}', ", line 2: access[0].busid: '1-1."),
        (
            f'[[access]]\nbusid = "1-1"{ALLOW}\n[[access]]\nhardware_id = "781:5567"{ALLOW}',
            ", line 5: access[1].hardware_id: '781:5567' is not a hardware id: it is VID:PID, four hex",
        ),
        # not TOML
        ("listen = [", ": not TOML: Invalid value (at the end, line 1): write listen = ["),
        ("\nlog_level = debug", ': not TOML: Invalid value (at line 2, column 13): write "debug", "info"'),
        ("zzz = debug", ": not TOML: Invalid value (at line 1, column 7)"),
        ("listen", ": not TOML: Expected '=' after a key in a key/value pair (at the end, line 1)"),
        ("user = 'a'\nuser = 'b'\n", ": not TOML: Cannot overwrite a value (at line 2"),
        ("a = " + "9" * 5000, ": not TOML: Exceeds the limit"),
        ("a = " + "[" * 5000, ": not TOML: maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_an_error_is_named(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "/etc/usbipd.toml")
    assert str(caught.value).startswith(f"/etc/usbipd.toml{complaint}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('# log_level = "x"\r\n\r\n \tlog_level = 1', ", line 3: log_level"),
        ('listen = [\n"::1",\n"localhost",\n]', ", line 1: listen[1]"),
        (
            "[ limits ]  # comment\nmax_connections = 1\n\nhandshake_timeout=0",
            ", line 4: limits.handshake_timeout",
        ),
        (f'[[ access ]]\nbusid="1-1"{ALLOW}\n[[access]]\nbusid="1"{ALLOW}', ", line 5: access[1].busid"),
        ("limits = {max_connections = 0}", ": limits.max_connections"),
        ("limits.max_connections = 0", ": limits.max_connections"),
        ("[limits]\n'max_connections' = 0", ": limits.max_connections"),
        (f"access = [{{busid = 5, {ALLOW.strip()}}}]", ": access[0].busid"),
        ("[[access]]\n[access.busid]\nallow = 1", ": access[0].busid"),
        ('"allow" = [1]\n[["access"]]\nbusid = "1-1"\nallow = ["::1"]', ": allow[0]"),
        ("x = [\n[1],\n[true]\n]\n", ", line 1: x"),
        ("user = '''\nlog_level = 1\n'''\nlog_level = 1", ": log_level"),
        ('user = """\nlog_level = 1\n"""\nlog_level = 1', ": log_level"),
    ],
)
def test_the_line_is_right_or_left_out(text: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "/etc/usbipd.toml")
    assert str(caught.value).startswith(f"/etc/usbipd.toml{place}: ")


@pytest.mark.parametrize("kind", [ServerConfig, Limits, AccessRule])
def test_each_key_has_an_example(kind: type[msgspec.Struct]) -> None:
    assert set(kind.__struct_fields__) <= _RIGHT.keys()


def test_no_serial_number_is_printed() -> None:
    for serial in ('"secret"', '["secret"]', f'"secret{"x" * 200}"'):
        with pytest.raises(UsageError) as caught:
            parse(f"[[access]]\nserial = {serial}{ALLOW}", "usbipd.toml")
        assert "secret" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "usbipd.toml"
    file.write_bytes(b"user = '\xff'")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 8\)"):
        load(file)


WORDS = """
listen allow user log_level limits max_connections access busid hardware_id serial zzz [[access]] [limits]
= . , [ ] { } ' " \'\'\' \\ # 0 -1 1e999 nan true 2026-01-01 "1-1" "0781:5567" "::1" "192.168.1.7/24"
"""
PIECES = st.sampled_from([*WORDS.split(), '"""', " ", "\n", "\r\n", "\0"])


def accepted(text: str) -> ServerConfig | None:
    """The configuration in `text`; None if it is refused, with the line of the key if with any."""
    try:
        return parse(text, "usbipd.toml")
    except UsageError as error:
        complaint = error.message
    assert complaint.startswith("usbipd.toml")
    if place := re.match(r"usbipd\.toml, line ([0-9]+): (?:[^ ]*\.)?(\w+)", complaint):
        assert place[2] in text.split("\n")[int(place[1]) - 1]
    return None


@settings(deadline=None)
@given(st.text() | st.lists(PIECES, max_size=24).map("".join))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    config = accepted(text)
    if config is not None:
        assert len(config.addresses) == len(config.listen)
        for access in config.access:
            assert access.rule != DeviceRule()


SIMPLE = st.sampled_from(['"::1"', '"1-1"', '"0781:5567"', "0.5", "nan", "07:32:00", "true", "[]"])
VALUES = st.recursive(
    SIMPLE | st.integers().map(str),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    max_leaves=5,
)
KEYS = st.sampled_from([*_RIGHT, "zzz"])
ASSIGNMENTS = st.dictionaries(KEYS, VALUES, max_size=3).map(
    lambda pairs: "".join(f"{key} = {value}\n" for key, value in pairs.items())
)


@settings(deadline=None)
@given(ASSIGNMENTS, ASSIGNMENTS, st.lists(ASSIGNMENTS, max_size=3))
def test_any_values_are_a_configuration_or_refused(top: str, limits: str, access: list[str]) -> None:
    text = top + "".join(f"[[access]]\n{table}" for table in access) + f"[limits]\n{limits}"
    config = accepted(text)
    if config is not None:
        assert all(rule.allow for rule in config.access)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="root on Linux looks up each name")
def test_root_refuses_a_pipe() -> None:
    """As a shell creates it for `--config <(command)`, or for /dev/stdin."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(UsageError, match="a pipe or another open file without a name") as caught:
            load(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)
    assert caught.value.advice == "name a file that only root can change, such as /etc/usbipd/usbipd.toml"


@pytest.mark.skipif(os.geteuid() == 0, reason="root cannot check who writes to it")
def test_a_user_may_use_a_pipe() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b'log_level = "debug"')
        os.close(writer)
        assert load(Path(f"/dev/fd/{reader}")).log_level == "debug"
    finally:
        os.close(reader)
