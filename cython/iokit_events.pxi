# Arrivals and removals of USB devices.  Runs in the extension.
#
# IOKit posts each event to a queue of libdispatch, which calls `devices_changed` on a separate thread.  An iterator
# posts the next event only after it has been emptied.

cdef struct Watch:
    dispatch_queue_t queue
    IONotificationPortRef port
    io_object_t iterators[4]  # arrivals and departures for each name of the class
    PyObject *on_event


@cython.no_gc_clear  # it may be called until it is closed
cdef class DeviceListener:
    """Calls `on_event()`, on a system thread, for each USB device that arrives or is removed, until `close`.

    A device has arrived when its kernel drivers have been started.  Devices that are already present are not
    announced: list them after this has returned.  `on_event` must return soon and not raise.  Raises `UsbipdError`,
    code "iokit".
    """

    cdef Watch watch
    cdef object on_event

    def __cinit__(self, on_event):
        cdef Watch *watch = &self.watch
        cdef CFDictionaryRef matching
        cdef const char *kind
        cdef kern_return_t code
        cdef int n = 0
        self.on_event = on_event
        watch.on_event = <PyObject *>on_event
        watch.port = IONotificationPortCreate(0)  # 0: the main port
        watch.queue = dispatch_queue_create("org.usbipd.devices", NULL)
        IONotificationPortSetDispatchQueue(watch.port, watch.queue)
        for class_name in _CLASSES:
            for name in (b"IOServiceFirstMatch", b"IOServiceTerminate"):  # IOKitKeys.h
                kind = name
                matching = IOServiceMatching(class_name)
                if matching == NULL:
                    raise MemoryError
                with nogil:
                    code = IOServiceAddMatchingNotification(  # it takes the dictionary
                        watch.port, kind, matching, devices_changed, watch, &watch.iterators[n])
                    if code == 0:
                        empty(watch.iterators[n])
                if code != 0:
                    raise UsbipdError(f"IOServiceAddMatchingNotification: {error_name(code)}", code="iokit")
                n += 1

    def close(self):
        """No calls are made once this returns.  Idempotent; not from within `on_event`."""
        cdef Watch *watch = &self.watch
        if watch.queue == NULL:
            return
        with nogil:
            dispatch_sync_f(watch.queue, watch, devices_close)  # behind a call that is under way
            dispatch_release(watch.queue)
        watch.queue = NULL

    def __dealloc__(self):
        self.close()


cdef void devices_close(void *context) noexcept nogil:
    cdef Watch *watch = <Watch *>context
    IONotificationPortDestroy(watch.port)
    for iterator in watch.iterators:
        if iterator != 0:
            IOObjectRelease(iterator)


cdef void empty(io_object_t iterator) noexcept nogil:
    cdef io_object_t service = IOIteratorNext(iterator)
    while service != 0:
        IOObjectRelease(service)
        service = IOIteratorNext(iterator)


cdef void devices_changed(void *context, io_object_t iterator) noexcept nogil:
    empty(iterator)
    devices_tell(<Watch *>context)


cdef void devices_tell(Watch *watch) noexcept with gil:
    (<object>watch.on_event)()
