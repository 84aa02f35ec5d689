"""One process per claimed device: holds the device, then carries the URBs of one client."""
