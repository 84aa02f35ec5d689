"""What a worker holds: one device, real or simulated, ready for the pump.  Runs in workers."""

from abc import ABC, abstractmethod

from usbipd._claim import Claim
from usbipd._pump import LibusbTransfers, SimulatedTransfers, Transfers
from usbipd.ipc.children import ClaimParameters
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice, UsbInterface
from usbipd.simulated.device import SimulatedDevice
from usbipd.usb.descriptors import Endpoint, Interface, parse_configuration, parse_device


class HeldDevice(ABC):
    """A device in this process's hands; `endpoints` are those of every setting of every configuration."""

    claim_method: str
    """For people and reports: how the device was taken."""

    def __init__(self, parameters: ClaimParameters, transfers: Transfers, endpoints: list[Endpoint]) -> None:
        self._parameters = parameters
        self.transfers = transfers
        self.endpoints = endpoints

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
        self, fields: dict[str, int], speed: Speed, configuration: int, interfaces: list[Interface]
    ) -> UsbDevice:
        """The OP_* record; of each interface it shows alternate setting 0, as usbip_device.c reads it."""
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
                if each.bAlternateSetting == 0
            ),
            **fields,
        )


class HeldUsbDevice(HeldDevice):
    """A real device, claimed through libusb."""

    def __init__(self, parameters: ClaimParameters) -> None:
        self._claim = Claim(parameters.busnum, parameters.devnum)
        transfers = LibusbTransfers(self._claim, device_memory=parameters.device_memory)
        super().__init__(parameters, transfers, self._claim.endpoints())
        self._claim.take()  # last: it undoes itself when it fails, but not when something after it does
        self.claim_method = "libusb, captured" if self._claim.captured else "libusb"

    def device(self) -> UsbDevice:
        claim = self._claim
        speed = Speed.of_libusb(claim.speed())
        return self._describe(claim.device_descriptor(), speed, claim.configuration, claim.interfaces())

    def claim_again(self) -> None:
        self._claim.claim_again()

    def give_back(self) -> list[str]:
        return self._claim.give_back()


class HeldSimulatedDevice(HeldDevice):
    """A simulated device, alive in this process only."""

    claim_method = "simulated"

    def __init__(self, parameters: ClaimParameters, model: SimulatedDevice) -> None:
        self._model = model
        self._configurations = [parse_configuration(raw) for raw in model.configurations]
        endpoints = [endpoint for each in self._configurations for endpoint in each.endpoints]
        super().__init__(parameters, SimulatedTransfers(model), endpoints)

    def device(self) -> UsbDevice:
        first, model = self._configurations[0], self._model
        fields = parse_device(model.device_descriptor)
        return self._describe(fields, model.speed, first.bConfigurationValue, list(first.interfaces))

    def claim_again(self) -> None:
        """Nothing to claim."""

    def give_back(self) -> list[str]:
        try:
            self._model.close()
        except OSError as error:
            return [f"cannot write the file of the simulated device completely: {error}"]
        return []


def hold_device(parameters: ClaimParameters) -> HeldDevice:
    """Claims the device; blocks until its drivers release it.

    Raises `ClaimError` if a program or driver keeps it, `UsageError` for a bad option of a simulated device.
    """
    if parameters.simulated is None:
        return HeldUsbDevice(parameters)

    from usbipd.simulated.catalog import create  # here: the worker of a real device needs none of them

    return HeldSimulatedDevice(parameters, create(parameters.simulated.name, parameters.simulated.options))
