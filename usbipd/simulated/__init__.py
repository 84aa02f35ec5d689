"""Software USB devices that a real kernel drives with its class drivers.  Run in their workers."""
