"""Software USB devices for the class drivers of a real kernel.  Runs in workers."""
