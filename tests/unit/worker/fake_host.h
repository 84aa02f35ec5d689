/*
 * The host's stack below fake_libusb.c: what Linux sends to the device, and what becomes of its endpoints, when usbfs is
 * asked (proc_* in drivers/usb/core/devio.c).
 */

static int configuration = 1;
static int alternates[2]; /* by interface */
static int claimed;       /* a bit per interface */
static int drivers = 3;   /* the same */
static int off;           /* the same: whose endpoints a SET_INTERFACE that failed has switched off */
static char bus[2048];    /* what the device was sent, a line each */

#define SENT(...) (bus[0] ? add("\n") : (void)0, add(__VA_ARGS__))

static void add(const char *format, ...)
{
    va_list arguments;
    size_t at = strlen(bus);
    va_start(arguments, format);
    vsnprintf(bus + at, sizeof bus - at, format, arguments);
    va_end(arguments);
}

static void host_begin(void)
{
    configuration = 1;
    drivers = 3;
    claimed = off = alternates[0] = alternates[1] = 0;
    bus[0] = 0;
}

static int interface_at(unsigned char endpoint) { return (endpoint & LIBUSB_ENDPOINT_ADDRESS_MASK) == 5; }

static int has_interface(int interface) { return configuration == 1 ? interface < 2 : configuration && !interface; }

static int has_endpoint(unsigned char endpoint)
{
    int known = endpoint == 0x01 || endpoint == 0x81 || endpoint == 0x82 || (interface_at(endpoint) && alternates[1]);
    return !(endpoint & 0x0f) || (configuration == 1 && known);
}

/* usb_set_interface in message.c: what does not exist is refused before anything is switched off. */
static int host_set_interface(int interface, int alternate, int answer)
{
    if (interface >= 32) /* USB_MAXINTERFACES in libusb's core.c */
        return LIBUSB_ERROR_INVALID_PARAM;
    if (!has_interface(interface) || !(claimed >> interface & 1) || alternate > interface)
        return LIBUSB_ERROR_NOT_FOUND;
    SENT("SET_INTERFACE %d %d", interface, alternate);
    off |= 1 << interface;
    if (answer != 0)
        return answer;
    off &= ~(1 << interface);
    alternates[interface] = alternate;
    return 0;
}

/* usb_unbind_interface in driver.c */
static void host_release(int interface)
{
    if (alternates[interface])
        SENT("SET_INTERFACE %d 0", interface);
    alternates[interface] = 0;
    off &= ~(1 << interface);
    claimed &= ~(1 << interface);
}

/*
 * proc_setconfig in devio.c; -1: not configured any more.  Linux leaves the active configuration before it sends another
 * one, and does not go back to it if that fails, unless it lacked memory before all (usb_set_configuration in
 * message.c).  A new configuration has new interfaces, and each gets its driver.
 */
static int host_set_configuration(int value, int answer, int host_errno)
{
    int other = (value < 0 ? 0 : value) != configuration;
    if (claimed)
        return LIBUSB_ERROR_BUSY;
    if (value > 2)
        return LIBUSB_ERROR_NOT_FOUND;
    if (answer != 0 && other && host_errno != ENOMEM)
        configuration = drivers = alternates[0] = alternates[1] = off = 0;
    if (answer != 0)
        return answer;
    configuration = value < 0 ? 0 : value;
    SENT("SET_CONFIGURATION %d", configuration);
    alternates[0] = alternates[1] = off = 0;
    if (other)
        drivers = has_interface(0) | has_interface(1) << 1;
    return 0;
}

/* op_reset_device in linux_usbfs.c, then usb_reset_and_verify_device in hub.c. */
static void host_reset(void)
{
    int held = claimed;
    for (int i = 0; i < 2; i++)
        if (held >> i & 1)
            host_release(i);
    SENT("RESET");
    if (configuration)
        SENT("SET_CONFIGURATION %d", configuration);
    claimed = held;
}
