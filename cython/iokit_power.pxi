# Sleep and wake of the system.  Runs in the extension.
#
# The kernel asks all registered processes before it sleeps, and waits up to 30 seconds for an answer (Apple's QA1340;
# IOPMLib.h).  We always agree: URBs in flight end when the bus stops, with the status from the host's stack, as on
# Linux.  So libdispatch's thread answers before it calls Python: waiting for the GIL would delay the sleep, which is
# worse than a late notification.

SLEEPS = "sleeps"
WAKES = "wakes"

cdef struct Power:
    dispatch_queue_t queue
    IONotificationPortRef port
    io_object_t connection       # to the root of power management; 0: none
    io_object_t notifier
    PyObject *on_change


@cython.no_gc_clear  # it may be called until it is closed
cdef class PowerListener:
    """Calls `on_change(SLEEPS)` and `on_change(WAKES)`, on a system thread, until `close`.

    `on_change` must return soon and not raise.  Raises `UsbipdError`, code "iokit", if the system does not.
    """

    cdef Power power
    cdef object on_change

    def __cinit__(self, on_change):
        cdef Power *power = &self.power
        self.on_change = on_change
        power.on_change = <PyObject *>on_change
        with nogil:
            power.connection = IORegisterForSystemPower(power, &power.port, power_changed, &power.notifier)
        if power.connection == 0:
            raise UsbipdError("macOS sends no sleep notifications: IORegisterForSystemPower failed", code="iokit")
        power.queue = dispatch_queue_create("org.usbipd.power", NULL)
        IONotificationPortSetDispatchQueue(power.port, power.queue)

    def close(self):
        """No calls are made once this returns.  Idempotent; not from within `on_change`."""
        cdef Power *power = &self.power
        if power.queue == NULL:
            return
        with nogil:
            dispatch_sync_f(power.queue, power, power_close)  # behind a call that is under way
            dispatch_release(power.queue)
        power.queue = NULL

    def __dealloc__(self):
        self.close()


cdef void power_close(void *context) noexcept nogil:
    cdef Power *power = <Power *>context
    IODeregisterForSystemPower(&power.notifier)
    IONotificationPortDestroy(power.port)
    IOServiceClose(power.connection)


cdef void power_changed(void *context, io_object_t service, uint32_t message, void *argument) noexcept nogil:
    cdef Power *power = <Power *>context
    if message == kIOMessageCanSystemSleep or message == kIOMessageSystemWillSleep:
        IOAllowPowerChange(power.connection, <intptr_t>argument)
    if message == kIOMessageSystemWillSleep:
        power_tell(power, True)
    elif message == kIOMessageSystemHasPoweredOn:
        power_tell(power, False)


cdef void power_tell(Power *power, bint sleeps) noexcept with gil:
    (<object>power.on_change)(SLEEPS if sleeps else WAKES)
