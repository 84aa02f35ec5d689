"""What a worker holds: one device, real or simulated, ready for the pump.  Runs in workers."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence

from usbipd._claim import Claim
from usbipd._pump import LibusbTransfers, SimulatedTransfers, Transfers
from usbipd.errors import ClaimError
from usbipd.ipc.children import ClaimParameters
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice, UsbInterface
from usbipd.simulated.device import SimulatedDevice
from usbipd.usb.descriptors import (
    Configuration,
    DescriptorError,
    Interface,
    parse_descriptors,
)
from usbipd.usb.sysfs_descriptors import (
    UNUSABLE,
    configuration_in_sysfs,
    descriptors_in_sysfs,
    devnum_in_sysfs,
    interfaces_in_sysfs,
)


class HeldDevice(ABC):
    """A device in this process's hands; `configurations` are all that it has."""

    claim_method: str
    """For people and reports: how the device was taken."""

    def __init__(
        self, parameters: ClaimParameters, transfers: Transfers, configurations: Sequence[Configuration]
    ) -> None:
        self._parameters = parameters
        self.transfers = transfers
        self.configurations = configurations

    @abstractmethod
    def device(self) -> UsbDevice:
        """The device as OP_REP_IMPORT describes it now."""

    @abstractmethod
    def claim_again(self) -> None:
        """Does once, without a request to the device, what the worker must still be able to do when it is
        confined.  Raises `ClaimError`."""

    @abstractmethod
    def give_back(self) -> list[str]:
        """Lets the device go.  Returns what did not work, a sentence each."""

    def _describe(
        self, fields: dict[str, int], speed: Speed, configuration: int, interfaces: Sequence[Interface]
    ) -> UsbDevice:
        """The OP_* record; of each interface it shows the first setting, as sysfs does before any change."""
        return UsbDevice(
            path=self._parameters.path,
            busid=self._parameters.busid,
            busnum=self._parameters.busnum,
            devnum=self._parameters.devnum,
            speed=speed,
            bConfigurationValue=configuration,
            interfaces=tuple(
                UsbInterface(each.bInterfaceClass, each.bInterfaceSubClass, each.bInterfaceProtocol)
                for each in interfaces
            ),
            **fields,
        )


class HeldUsbDevice(HeldDevice):
    """A real device, claimed through libusb."""

    def __init__(self, parameters: ClaimParameters) -> None:
        if sys.platform == "darwin":  # nothing there shows all descriptors: the device is asked
            self._claim = Claim(parameters.busnum, parameters.devnum)
        else:
            self._claim = _claim_of(parameters)
        transfers = LibusbTransfers(self._claim, device_memory=parameters.device_memory)
        super().__init__(parameters, transfers, self._claim.descriptors.configurations)
        self._claim.take()  # last: it undoes itself when it fails, but not when something after it does
        if sys.platform != "darwin":
            self._require_whole_device(parameters.path)
        self.claim_method = "libusb, captured" if self._claim.captured else "libusb"

    def _require_whole_device(self, directory: str) -> None:
        """A driver of this host must not keep a part of the device.  Its configuration must be the one whose
        interfaces are claimed: usbmuxd and usb_modeswitch set another one when a device is plugged in.

        Raises `ClaimError`; the device is then released.
        """
        expected = self._claim.configuration
        try:
            active = configuration_in_sysfs(directory)
            left = interfaces_in_sysfs(directory) - set(self._claim.held)
        except OSError:  # it is being removed, which the pump will notice
            return
        if active != expected:
            reason = f"configuration {expected} was expected, and {active} is active"
            code = "LIBUSB_ERROR_NOT_FOUND"
        elif left:
            numbers = ", ".join(map(str, sorted(left)))
            reason = f"the kernel has interfaces that the descriptors do not show: {numbers}"
            code = "interfaces-left"
        else:
            return
        raise ClaimError("; ".join([reason, *self._claim.give_back()]), code=code)

    def device(self) -> UsbDevice:
        claim = self._claim
        speed = Speed.of_libusb(claim.speed())
        return self._describe(claim.descriptors.fields, speed, claim.configuration, claim.interfaces())

    def claim_again(self) -> None:
        self._claim.claim_again()

    def give_back(self) -> list[str]:
        return self._claim.give_back()


class HeldSimulatedDevice(HeldDevice):
    """A simulated device, alive in this process only."""

    claim_method = "simulated"

    def __init__(self, parameters: ClaimParameters, model: SimulatedDevice) -> None:
        self._model = model
        self._descriptors = parse_descriptors(model.device_descriptor, model.configurations)
        super().__init__(parameters, SimulatedTransfers(model), self._descriptors.configurations)

    def device(self) -> UsbDevice:
        fields, first = self._descriptors.fields, self._descriptors.configurations[0]
        return self._describe(fields, self._model.speed, first.bConfigurationValue, first.initial)

    def claim_again(self) -> None:
        """Nothing to claim."""

    def give_back(self) -> list[str]:
        try:
            self._model.close()
        except OSError as error:
            return [f"cannot write the file of the simulated device completely: {error}"]
        return []


def _claim_of(parameters: ClaimParameters) -> Claim:
    """A claim with the descriptors that Linux read when it enumerated the device.  Raises `ClaimError`."""
    busnum, devnum, directory = parameters.busnum, parameters.devnum, parameters.path
    try:
        descriptors = descriptors_in_sysfs(directory)
        configuration = configuration_in_sysfs(directory)
        is_present = devnum_in_sysfs(directory) == devnum
    except OSError:
        is_present = False
    except DescriptorError as error:
        raise ClaimError(f"its descriptors cannot be read: {error.message}", code=UNUSABLE) from error
    if not is_present:
        raise ClaimError(f"device {devnum} of bus {busnum} is gone", code="LIBUSB_ERROR_NO_DEVICE")
    return Claim(busnum, devnum, descriptors=descriptors, configuration=configuration)


def hold_device(parameters: ClaimParameters) -> HeldDevice:
    """Claims the device; blocks until its drivers release it.

    Raises `ClaimError` if a program or driver keeps it, `UsageError` for a bad option of a simulated device.
    """
    if parameters.simulated is None:
        return HeldUsbDevice(parameters)

    from usbipd.simulated.catalog import create  # here: the worker of a real device needs none of them

    return HeldSimulatedDevice(parameters, create(parameters.simulated.name, parameters.simulated.options))
