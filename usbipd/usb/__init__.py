"""What the platform knows of USB devices.  Runs in the extension and, for descriptors, in workers."""
