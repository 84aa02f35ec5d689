"""Names of devices and bindings: what they report, what usb.ids has, and their numbers."""

import pytest

from tests.unit.cli.reports import make_binding, make_device
from usbipd.cli.device import binding_name, device_name, known_name

LISTED = {"vendor_id": 0x0951, "product_id": 0x1666}
LISTED_WITH_MAKER = {"vendor_id": 0x0951, "product_id": 0x1624}
LISTED_MAKER = {"vendor_id": 0x0951, "product_id": 0x0001}
UNKNOWN = {"vendor_id": 0xFFF0, "product_id": 0x0001}


@pytest.mark.parametrize(
    ("ids", "maker", "product", "name", "without_maker"),
    [
        (LISTED, "Acme", "Disk", "Acme Disk", "Disk"),
        (LISTED, "Acme", "Acme Disk", "Acme Disk", "Acme Disk"),
        (LISTED, None, "Disk", "Disk", "Disk"),
        (LISTED, "Acme", None, "Acme DataTraveler 100 G3", "DataTraveler 100 G3"),
        (LISTED, None, None, "Kingston Technology DataTraveler 100 G3", "DataTraveler 100 G3"),
        (LISTED, " ", "", "Kingston Technology DataTraveler 100 G3", "DataTraveler 100 G3"),
        (LISTED_WITH_MAKER, None, None, "Kingston Technology G2", "Kingston Technology G2"),
        (LISTED_MAKER, None, None, "Kingston Technology", "Kingston Technology"),
        (LISTED_MAKER, "Acme", None, "Acme", "Acme"),
        (UNKNOWN, None, "Disk", "Disk", "Disk"),
        (UNKNOWN, "Acme", None, "Acme", "Acme"),
        (UNKNOWN, None, None, "fff0:0001", "fff0:0001"),
    ],
)
def test_names(
    ids: dict[str, int], maker: str | None, product: str | None, name: str, without_maker: str
) -> None:
    device = make_device(manufacturer=maker, product=product, **ids)
    assert device_name(device) == name
    assert device_name(device, with_maker=False) == without_maker


def test_unknown_name() -> None:
    assert known_name(**UNKNOWN) is None


def test_a_simulated_device_is_marked_once() -> None:
    marked = make_device(product="Simulated disk", manufacturer=None, simulated=True)
    assert device_name(marked) == "Simulated disk"
    unknown = make_device(product=None, manufacturer=None, simulated=True, **UNKNOWN)
    assert device_name(unknown) == "fff0:0001 (simulated)"


def test_bindings() -> None:
    assert binding_name(make_binding(busid="3-1")) == "0781:5581 at 3-1 (Ultra)"
    assert binding_name(make_binding(product=None, **LISTED)) == "0951:1666 (DataTraveler 100 G3)"
    assert binding_name(make_binding(product=None, **UNKNOWN)) == "fff0:0001"
