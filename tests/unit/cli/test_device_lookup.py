"""Which device or binding a name means, and what is asked or refused where several fit."""

import io
from collections.abc import Callable

import pytest

from tests.unit.cli.reports import make_binding, make_device, make_status
from usbipd.cli.device_arguments import parse_device
from usbipd.cli.device_lookup import only_named, pick_binding, pick_device, require_named
from usbipd.errors import UsageError, UsbipdError
from usbipd.ipc.control_messages import DeviceState, HardwareId, ListResult, UnbindParameters

DISK = make_device("1-1", product="Ultra", serial="4C530001")
OTHER = make_device("1-2", product="Ultra", serial="AA00BB11")
MOUSE = make_device("3-2.4", vendor_id=0x46D, manufacturer="Logitech", product="USB Mouse", serial=None)
DEVICES = [DISK, OTHER, MOUSE]


class Terminal(io.StringIO):
    """A terminal at which these lines are typed."""

    def isatty(self) -> bool:
        return True


Type = Callable[[str], Terminal]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> Type:
    """`type_in(text)`: a person answers that; what they read."""

    def start(text: str) -> Terminal:
        screen = Terminal()
        monkeypatch.setattr("sys.stdin", Terminal(text))
        monkeypatch.setattr("sys.stderr", screen)
        return screen

    return start


@pytest.mark.parametrize(
    ("text", "busid"),
    [
        ("3-2.4", "3-2.4"),
        ("046d:5581", "3-2.4"),
        ("0781:5581:AA00BB11", "1-2"),
        ("mouse", "3-2.4"),
        ("LOGI", "3-2.4"),
        ("logitech usb mouse", "3-2.4"),
        ("4c53", "1-1"),
        ("bb11", "1-2"),
    ],
)
def test_a_name_finds_the_device(text: str, busid: str) -> None:
    assert pick_device("detach", parse_device(text), DEVICES, None, as_json=False) == busid


@pytest.mark.parametrize("text", ["keyboard", "9-9", "0000:5581", "0781:5581:aa00bb11", "4c530001 ultra"])
def test_a_name_that_fits_nothing(text: str) -> None:
    with pytest.raises(UsbipdError, match=f"^no device matches '{text}'$") as caught:
        pick_device("bind", parse_device(text), DEVICES, None, as_json=False)
    assert (caught.value.exit_code, caught.value.code) == (1, "no-device")


@pytest.mark.parametrize("text", ["ultra", "0781:5581", "SanDisk"])
def test_two_that_fit_are_an_error_for_a_program(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        pick_device("bind", parse_device(text), DEVICES, None, as_json=False)
    assert (caught.value.exit_code, caught.value.code) == (2, "ambiguous")
    assert caught.value.message == (
        f"{text!r} matches 2 devices: 1-1 0781:5581 SanDisk Ultra (4C530001); 1-2 0781:5581 "
        "SanDisk Ultra (AA00BB11)"
    )
    assert caught.value.advice == "name one of them: `usbipd bind 1-1`"


def test_of_many_that_fit_some_are_named() -> None:
    devices = [make_device(f"1-{number}") for number in range(1, 101)]
    with pytest.raises(UsageError, match=r"matches 100 devices: 1-1 .*; 1-8 [^;]*; and 92 more$"):
        pick_device("bind", parse_device("ultra"), devices, None, as_json=False)


def test_a_person_chooses_one_of_two(type_in: Type) -> None:
    screen = type_in("2\n")
    assert pick_device("bind", parse_device("ultra"), DEVICES, None, as_json=False) == "1-2"
    assert screen.getvalue() == (
        "  1  1-1     0781:5581  SanDisk Ultra (4C530001)\n"
        "  2  1-2     0781:5581  SanDisk Ultra (AA00BB11)\n"
        "Which one to bind? [1-2]: "
    )


def test_a_person_is_not_asked_where_one_fits(type_in: Type) -> None:
    screen = type_in("")
    assert pick_device("bind", parse_device("mouse"), DEVICES, None, as_json=False) == "3-2.4"
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    "answer", ["", "\n", "0\n", "3\n", "-1\n", "one\n", "²\n", "0000000012\n", "1 2\n", "9" * 5000]
)
def test_an_answer_that_is_no_number_chooses_nothing(answer: str, type_in: Type) -> None:
    type_in(answer)
    with pytest.raises(UsageError, match=r"nothing was chosen|is not one of the choices"):
        pick_device("bind", parse_device("ultra"), DEVICES, None, as_json=False)


def test_a_program_that_reads_json_is_not_asked(type_in: Type) -> None:
    screen = type_in("1\n")
    with pytest.raises(UsageError, match="matches 2 devices"):
        pick_device("bind", parse_device("ultra"), DEVICES, None, as_json=True)
    assert screen.getvalue() == ""


def test_without_a_name_one_device_is_offered_and_not_taken(type_in: Type) -> None:
    screen = type_in("1\n")
    assert pick_device("bind", None, [DISK], None, as_json=False) == "1-1"
    assert "Which one to bind? [1-1]: " in screen.getvalue()


def test_without_a_name_and_a_terminal_nothing_is_taken() -> None:
    with pytest.raises(UsageError, match=r"^bind needs a device$"):
        pick_device("bind", None, [DISK], None, as_json=False)


def test_only_what_the_command_can_do_something_for_is_meant() -> None:
    devices = [DISK, make_device("1-2", state=DeviceState.ATTACHED)]

    def pick(text: str) -> str:
        return pick_device(
            "detach",
            parse_device(text),
            devices,
            lambda device: device.state is DeviceState.ATTACHED,
            as_json=False,
        )

    assert pick("ultra") == "1-2"
    assert pick("4c530001") == "1-2", "its serial number is the same"
    assert pick("1-1") == "1-1", "the daemon says why not"


def test_a_status_of_named_devices() -> None:
    status = make_status(DEVICES)

    def busids(*texts: str) -> list[str]:
        return [device.busid for device in only_named(status, list(map(parse_device, texts))).devices]

    assert busids("ultra") == ["1-1", "1-2"], "here a name may mean several"
    assert busids("mouse", "1-1") == ["1-1", "3-2.4"]
    assert busids("keyboard") == []
    require_named(status, [parse_device("mouse")])
    with pytest.raises(UsbipdError, match=r"^no device matches 'keyboard'$"):
        require_named(status, [parse_device("mouse"), parse_device("keyboard")])


# ---- bindings ----------------------------------------------------------------------------------------------

PORT = make_binding(busid="1-1", serial="4C530001", devices=["1-1"])
KIND = make_binding(devices=["1-1", "1-2"], product=None)
ABSENT = make_binding(vendor_id=0x46D, serial="M1", product="USB Mouse")


def unbind(text: str | None, *bindings: object, as_json: bool = False) -> UnbindParameters:
    result = ListResult(devices=DEVICES, bindings=list(bindings))  # type: ignore[arg-type]
    return pick_binding(None if text is None else parse_device(text), result, as_json=as_json)


def hardware(vendor_id: int, product_id: int, serial: str | None = None) -> UnbindParameters:
    return UnbindParameters(hardware=HardwareId(vendor_id=vendor_id, product_id=product_id, serial=serial))


def test_a_name_finds_the_binding() -> None:
    assert unbind("ultra", PORT, ABSENT) == UnbindParameters(busid="1-1")
    assert unbind("sandisk", KIND, ABSENT) == hardware(0x781, 0x5581), "what the device is called now"
    assert unbind("mouse", PORT, ABSENT) == hardware(0x46D, 0x5581, "M1"), "it is not plugged in"
    assert unbind("0781:5581", PORT, ABSENT) == UnbindParameters(busid="1-1")
    assert unbind("046d:5581:M1", PORT, ABSENT) == hardware(0x46D, 0x5581, "M1")


def test_the_rule_that_is_named_exactly_is_meant_before_others() -> None:
    assert unbind("0781:5581", PORT, KIND) == hardware(0x781, 0x5581)


def test_two_bindings_that_fit() -> None:
    with pytest.raises(UsageError) as caught:
        unbind("ultra", PORT, KIND)
    assert caught.value.message == ("'ultra' matches 2 bindings: 0781:5581 at 1-1 (Ultra); 0781:5581")
    assert caught.value.advice == "name one of them: `usbipd unbind 1-1`"


def test_the_bindings_of_one_port_are_one_choice(type_in: Type) -> None:
    other = make_binding(busid="1-1", vendor_id=0x46D, product="Mouse")
    screen = type_in("1\n")
    assert unbind(None, PORT, other) == UnbindParameters(busid="1-1")
    assert "  1  0781:5581 at 1-1 (Ultra) and 046d:5581 at 1-1 (Mouse)\n" in screen.getvalue()


def test_a_name_removes_no_other_binding_of_its_port() -> None:
    other = make_binding(busid="1-1", vendor_id=0x46D, product="Mouse")
    with pytest.raises(UsageError, match="'mouse' is one of several bindings of a port") as caught:
        unbind("mouse", PORT, other)
    assert caught.value.advice == "`usbipd unbind 1-1` removes all of them"


def test_no_binding_fits() -> None:
    with pytest.raises(UsbipdError, match=r"^no binding matches 'keyboard'$"):
        unbind("keyboard", PORT)
