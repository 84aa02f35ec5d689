# Enumerates a device again.  Runs in the extension.


def reenumerate(registry_id: int) -> None:
    """Ends a capture of the device and makes macOS enumerate it as if it had been plugged in, with its drivers.

    Returns before that is done.  Needs root if the device was captured.  Raises `UsbipdError`, code "iokit", with
    IOKit's error: the device does not exist, or a program has it open.
    """
    cdef _Object device = _read(lambda: _find(registry_id))
    cdef IOCFPlugInInterface **plugin = NULL
    cdef IOUSBDeviceInterface197 **usb = NULL
    cdef int32_t score
    cdef kern_return_t code
    if device is None:
        raise UsbipdError("the device does not exist", code="iokit")
    with nogil:
        code = IOCreatePlugInInterfaceForService(device.port, kIOUSBDeviceUserClientTypeID, kIOCFPlugInInterfaceID,
                                                 &plugin, &score)
    if code != 0 or plugin == NULL:
        raise UsbipdError(f"IOCreatePlugInInterfaceForService: {error_name(code)}", code="iokit")
    with nogil:
        plugin[0].QueryInterface(plugin, CFUUIDGetUUIDBytes(kIOUSBDeviceInterfaceID197), <void **>&usb)
        plugin[0].Release(plugin)
    if usb == NULL:
        raise UsbipdError("QueryInterface has no IOUSBDeviceInterface197", code="iokit")
    with nogil:
        code = usb[0].USBDeviceOpen(usb)
        if code == 0:
            code = usb[0].USBDeviceReEnumerate(usb, kUSBReEnumerateReleaseDeviceMask)
            usb[0].USBDeviceClose(usb)
        usb[0].Release(usb)
    if code != 0:
        raise UsbipdError(f"USBDeviceReEnumerate: {error_name(code)}", code="iokit")
