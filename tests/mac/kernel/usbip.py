"""A device of a USB/IP server, such as `usbipd-ext --simulate`, for class drivers.  Runs in the kernel.

A transfer becomes a CMD_SUBMIT; a cancelled one a CMD_UNLINK, and ends according to the server's answer: with
the data of an earlier RET_SUBMIT, or with nothing moved.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from tests.mac.kernel import errors
from tests.mac.kernel.hardware import Hardware, Kind, Transfer
from tests.urb import Command, IsoPacket, ReplyReader, RetSubmit, Submit, Unlink, encode
from usbipd.protocol.constants import (
    LINUX_EOVERFLOW,
    LINUX_EPIPE,
    LINUX_EREMOTEIO,
    NO_ISO_PACKETS,
    URB_DIR_IN,
    URB_ISO_ASAP,
    Speed,
)
from usbipd.protocol.op import ImportReplyReader, UsbDevice, encode_import_request

_SETUP: Final = struct.Struct("<BBHHH")
_CODES: Final = {
    0: errors.SUCCESS,
    -LINUX_EPIPE: errors.PIPE_STALLED,
    -LINUX_EOVERFLOW: errors.OVERRUN,
    -LINUX_EREMOTEIO: errors.UNDERRUN,
}
"""IOReturns of a RET_SUBMIT's status; all others are kIOReturnNotResponding."""


class UsbipDevice(Hardware):
    """An imported device; `connect` creates one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, device: UsbDevice) -> None:
        self.speed = Speed(device.speed)
        self._device = device
        self._reader = reader
        self._writer = writer
        self._replies = ReplyReader()
        self._seqnum = 0
        self._pending: dict[int, Transfer] = {}
        self._unlinks: dict[int, tuple[Transfer, int]] = {}
        """The transfer of each CMD_UNLINK, and its code, by seqnum."""
        self._ended = asyncio.Event()
        self._receiving = asyncio.get_running_loop().create_task(self._receive())

    @classmethod
    async def connect(cls, host: str, port_number: int, busid: str) -> UsbipDevice:
        """Imports a device and reads its descriptors.  Raises `OSError` if the server refuses."""
        reader, writer = await asyncio.open_connection(host, port_number)
        writer.write(encode_import_request(busid))
        answer = ImportReplyReader()
        reply = None
        while reply is None:
            if not (data := await reader.read(answer.wanted)):
                raise OSError(f"{host}:{port_number} closed the connection")
            reply = answer.feed(data)
        if reply.device is None:
            writer.close()
            raise OSError(f"{host}:{port_number} refused {busid} with status {reply.status}")
        device = cls(reader, writer, reply.device)
        await device._learn()
        return device

    async def _learn(self) -> None:
        self.device_descriptor = await self._descriptor(1, 0, 18)
        self.configurations = []
        for index in range(self.device_descriptor[17]):
            head = await self._descriptor(2, index, 9)
            self.configurations.append(await self._descriptor(2, index, int.from_bytes(head[2:4], "little")))
        manufacturer, product, serial = [
            (await self._descriptor(3, index, 255))[2:].decode("utf-16-le") if index else ""
            for index in self.device_descriptor[14:17]
        ]
        self.strings = manufacturer, product, serial

    async def _descriptor(self, kind: int, index: int, length: int) -> bytes:
        code, data = await self._control(0x80, 6, kind << 8 | index, 0x0409 if kind == 3 else 0, length)
        if code != errors.SUCCESS:
            raise OSError(f"the device has no descriptor {index} of type {kind}")
        return data

    async def _control(
        self, kind: int, request: int, value: int, index: int, length: int = 0
    ) -> tuple[int, bytes]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        transfer = Transfer(
            Kind.CONTROL,
            kind & 0x80,
            length,
            bytearray(),
            lambda _: done.set_result(None),
            _SETUP.pack(kind, request, value, index, length),
        )
        self.submit(transfer)
        await done
        return transfer.status or 0, bytes(transfer.data)

    # ---- transfers ---------------------------------------------------------------------------------

    def submit(self, transfer: Transfer) -> None:
        iso = tuple(IsoPacket(frame.offset, frame.length) for frame in transfer.frames)
        flags = (URB_DIR_IN if transfer.is_in else 0) | (URB_ISO_ASAP if iso else 0)
        data = b"" if transfer.is_in else bytes(transfer.data)
        seqnum = self._send(
            Submit(
                seqnum=self._next(),
                devid=self._device.devid,
                direction=int(transfer.is_in),
                ep=transfer.address & 0x0F,
                transfer_flags=flags,
                transfer_buffer_length=transfer.length if transfer.is_in else len(data),
                number_of_packets=len(iso) if iso else NO_ISO_PACKETS,
                interval=0 if transfer.kind in (Kind.CONTROL, Kind.BULK) else 1,
                setup=transfer.setup,
                data=data,
                iso=iso,
            )
        )
        self._pending[seqnum] = transfer

    def _next(self) -> int:
        self._seqnum += 1
        return self._seqnum

    def _send(self, command: Command) -> int:
        self._replies.expect(command)
        self._writer.write(encode(command))
        return command.seqnum

    async def cancel(self, transfers: list[Transfer], code: int) -> None:
        ends = []
        for seqnum, transfer in list(self._pending.items()):
            if transfer in transfers:
                unlink = Unlink(self._next(), self._device.devid, 0, 0, seqnum)
                self._unlinks[self._send(unlink)] = (transfer, code)
                ends.append(transfer)
        while any(each.status is None for each in ends):
            self._ended.clear()
            await self._ended.wait()

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(1 << 18):
                for reply in self._replies.feed(data):
                    if isinstance(reply, RetSubmit):
                        self._end(reply)
                    else:
                        transfer, code = self._unlinks.pop(reply.seqnum)
                        self._forget(transfer)
                        transfer.end(code)
                self._ended.set()
        except OSError:
            pass
        for transfer in list(self._pending.values()):
            transfer.end(errors.NOT_RESPONDING)
        self._pending.clear()
        self._ended.set()

    def _forget(self, transfer: Transfer) -> None:
        for seqnum, each in list(self._pending.items()):
            if each is transfer:
                del self._pending[seqnum]

    def _end(self, reply: RetSubmit) -> None:
        transfer = self._pending.pop(reply.seqnum)
        if transfer.kind == Kind.ISOCHRONOUS:
            packets = reply.packets() if transfer.is_in else ()
            for index, (frame, packet) in enumerate(zip(transfer.frames, reply.iso, strict=True)):
                frame.actual = packet.actual_length
                frame.status = errors.SUCCESS if packet.status == 0 else errors.NOT_RESPONDING
                if transfer.is_in:
                    transfer.data[frame.offset : frame.offset + frame.actual] = packets[index]
            transfer.moved = reply.actual_length
        elif transfer.is_in:
            transfer.data += reply.data
        else:
            transfer.moved = reply.actual_length
        transfer.end(_CODES.get(reply.status, errors.NOT_RESPONDING))

    # ---- requests of the host's stack --------------------------------------------------------------

    async def set_configuration(self, value: int) -> int:
        code, _ = await self._control(0x00, 9, value, 0)
        return code

    async def set_interface(self, interface: int, alternate: int) -> int:
        code, _ = await self._control(0x01, 11, alternate, interface)
        return code

    async def clear_halt(self, address: int) -> int:
        code, _ = await self._control(0x02, 1, 0, address)
        return code

    def reset(self) -> None:
        """USB/IP has no reset; the following configuration does most of it."""

    def unplug(self) -> None:
        self._writer.close()
