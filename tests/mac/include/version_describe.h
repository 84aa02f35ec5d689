/* The version description in builds of newer libusb. */
#define LIBUSB_DESCRIBE "software Mac"
