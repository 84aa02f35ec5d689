/* What the build of newer libusb says of its version. */
#define LIBUSB_DESCRIBE "software Mac"
