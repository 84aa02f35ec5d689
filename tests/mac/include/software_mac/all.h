/*
 * CoreFoundation, IOKit, IOUSBLib and Security as far as libusb's darwin backend and cython/iokit.pyx use them, for
 * Linux.  Written from Apple's public documentation; the names and numbers are the interface, nothing else is Apple's.
 * The layout of IOUSBLib's interfaces is our own: all code that uses it is compiled with this header.
 */
#ifndef SOFTWARE_MAC_ALL_H
#define SOFTWARE_MAC_ALL_H

#include <AvailabilityMacros.h>
#include <software_mac/corefoundation.h>
#include <software_mac/iokit.h>
#include <software_mac/usb.h>

#endif
