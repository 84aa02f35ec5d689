"""What a rule is called."""

from usbipd.usb.identity import DeviceRule


def test_only_a_description_has_the_serial_number() -> None:
    rule = DeviceRule(0x0781, 0x5567, "4C530001")
    assert str(rule) == "0781:5567 with its serial number"
    assert rule.describe() == "0781:5567 with serial number 4C530001"
    assert DeviceRule(0x0781, 0x5567).describe() == str(DeviceRule(0x0781, 0x5567)) == "0781:5567"
