"""The rules of USB/IP on the wire, by name: what must hold, and its source or the project that broke it.

A test names the rule it checks with `@pytest.mark.rule("name")`, a guest script of tests/e2e with a comment
`rule("name")`.  `tests/unit/test_rules.py` fails if a rule has no test and is not in `PENDING`.
"""

from typing import Final

RULES: Final[dict[str, str]] = {
    # ---- OP_*: usbip_protocol.rst, tools/usb/usbip ----
    "op-header": "Every OP message begins with version, code and status in 8 bytes (usbip_protocol.rst).",
    "op-version": "Only version 0x0111 is spoken; any other closes the connection (usbip_network.c).",
    "devlist-size": "OP_REP_DEVLIST is 12 bytes and 312 + 4 per interface a device (usbip_protocol.rst).",
    "import-body": "312 bytes of device follow OP_REP_IMPORT if and only if its status is 0 (usbipd.c).",
    "import-no-interfaces": "OP_REP_IMPORT carries no interface records (usbipd.c).",
    "names-padded": "path has 256 bytes and busid 32, padded with NUL (usbip_common.h).",
    "busid-echoed": "OP_REP_IMPORT repeats the requested busid; the client compares it (usbip_attach.c).",
    "op-status": "Status: 0 ok, 1 refused, 2 busy, 3 error, 4 no device, 5 unexpected (usbip_common.h).",
    "import-busy": "Importing an attached device gets status 2 (usbipd-win UsbIp.cs).",
    # ---- framing of URBs ----
    "urb-framing": "A URB message is a 48-byte header, data, then 16 bytes per iso packet (usbip_common.h).",
    "any-chunking": "A message arrives in parts or with others; chunks have no meaning (usbipd-mac's bug).",
    "capped-lengths": "A length is bounded before memory is allocated for it.",
    "setup-little-endian": "The setup packet is little-endian, the rest big-endian (usbip_protocol.rst).",
    "ep-number": "ep is 0 to 15 and never has the direction's bit 0x80 (usbip_protocol.rst).",
    "ep0-direction": "The direction of a control transfer is that of bmRequestType (usbip_protocol.rst).",
    "devid-checked": "devid is checked on every command, not only on the first (stub_rx.c, valid_request).",
    # ---- RET_SUBMIT ----
    "ret-basic-zero": "devid, direction and ep of a reply are 0 (usbip_protocol.rst).",
    "ret-seqnum": "A reply has the seqnum of its command (usbip_protocol.rst).",
    "seqnum-per-connection": "A seqnum is unique only per connection (usbipd-mac had one table for all).",
    "ret-data-in-only": "RET_SUBMIT carries data for IN transfers and none for OUT (jiegec/usbip#61).",
    "ret-out-taken": "For OUT, actual_length is the number of bytes the device accepted (usbip-win2#118).",
    "actual-length-bounded": "actual_length never exceeds the request: the client hangs up (usbip_common.c).",
    "ret-known-seqnum": "No reply for a seqnum that is not in flight; else the client hangs up (vhci_rx.c).",
    "packets-by-endpoint": "The endpoint, not number_of_packets, says whether a URB is iso (usbipd-win#450).",
    "packets-echoed": "number_of_packets is returned unchanged: 0, 0xffffffff or stale (usbipd-win#454).",
    # ---- isochronous ----
    "iso-limit": "An isochronous URB has at most 1024 packets (usbip_common.h).",
    "iso-compacted": "IN data of short packets is sent without the gaps (stub_tx.c).",
    "iso-descriptors-kept": "The returned descriptors keep the requested offset and length (usbip_pad_iso).",
    "iso-sum": "actual_length is the packets' sum, for OUT too; else the client hangs up (usbip_common.c).",
    "iso-descriptors-last": "Descriptors come after the data, in both directions (usbip_protocol.rst).",
    "iso-start-frame": "RET_SUBMIT of an isochronous URB fills in start_frame (usbip_protocol.rst).",
    "iso-error-count": "RET_SUBMIT of an isochronous URB counts failed packets in error_count (stub_tx.c).",
    # ---- UNLINK ----
    "unlink-pending": "Unlinking a pending URB: RET_UNLINK with -104 and no RET_SUBMIT (stub_rx.c).",
    "unlink-answered": "Unlinking an answered URB: RET_UNLINK with 0, after the RET_SUBMIT (stub_rx.c).",
    "unlink-partial": "Unlinking a URB that has moved bytes: RET_SUBMIT with -104 and those (not stub_tx.c).",
    "unlink-unknown": "Unlinking an unknown seqnum: RET_UNLINK with 0 (stub_rx.c).",
    "unlink-first": "An UNLINK can arrive before its SUBMIT, which then is not executed (vhci_tx.c).",
    "unlink-by-seqnum": "CMD_UNLINK has ep 0: only its seqnum identifies the URB (usbipd-win#684).",
    "unlink-others-live-mac": "macOS cancels a whole endpoint: others go on, or end with -84 (libusb#549).",
    # ---- what a transfer does ----
    "flags-values": "SHORT_NOT_OK 1, ISO_ASAP 2, ZERO_PACKET 64, NO_INTERRUPT 128, DIR_IN 512 (usbip.h).",
    "flags-masked": "Flags that a transfer type does not know are ignored (masking_bogus_flags, stub_rx.c).",
    "short-not-ok": "A short read under SHORT_NOT_OK has status -121, and its data (usbip.h).",
    "zero-packet": "ZERO_PACKET ends a bulk OUT of whole packets with an empty one (usbip.h).",
    "zero-packet-mac": "If libusb has no flag for ZERO_PACKET, the empty packet is sent (libusb.h).",
    "set-configuration": "SET_CONFIGURATION goes through the host's stack; endpoints follow (stub_rx.c).",
    "set-interface": "SET_INTERFACE goes through the host's stack; endpoint types follow (stub_rx.c).",
    "clear-halt": "CLEAR_FEATURE(ENDPOINT_HALT) goes through the host's stack: data toggles (stub_rx.c).",
    "port-reset": "SET_FEATURE(PORT_RESET) resets the device and is answered (stub_rx.c).",
    "no-bus-reset": "vhci forwards no bus reset: between two clients the server resets (vhci_hcd.c).",
    "linux-errno": "Status is a negative Linux errno on every host, ECONNRESET is 104 (pyusbip's bug).",
    "remote-wakeup": "USB/IP has no suspend: configurations are shown without remote wake-up (usbipd-win).",
    "uas-falls-back": "USB/IP has no bulk streams: the client must fall back to bulk-only (vhci_hcd.c).",
    # ---- speed ----
    "speed-numbers": "Speed is 1 low, 2 full, 3 high, 5 super; libusb's 4 is 5 here (usbipd-mac sent 4).",
    "speed-super-plus": "Super plus is sent as 5, since vhci before 6.12 refuses 6 (usbipd-win#259).",
    # ---- the connection ----
    "tcp-options": "The socket has TCP_NODELAY and keepalive (usbipd.c).",
    "idle-in": "An IN transfer waits until the device has data; there is no timeout (usbipd.c).",
    "order-per-endpoint": "URBs of one endpoint are answered in order (usbipd-win AttachedEndpoint.cs).",
    "endpoints-independent": "A waiting IN delays no other endpoint, UNLINK or ep 0 (usbipd-mac).",
    "unplug-closes": "When the device is removed, the TCP connection closes (usbipd-win Server.cs).",
    "lost-client": "When the client goes, its URBs are cancelled, the device is free (usbipd-win Server.cs).",
    # ---- bugs that others shipped ----
    "bug-devlist-padding": "DEVLIST without padding or interface records.",
    "bug-import-body": "IMPORT with status 0 and no device behind it.",
    "bug-unlink-ep0": "UNLINK, which carries ep 0, aborting the transfers of endpoint 0.",
    "bug-type-from-interval": "The type of a transfer guessed from the interval field.",
    "bug-timeout-length": "A read that did not fill the buffer reported as having filled it.",
    "bug-setup-freed": "A setup packet freed before the transfer has used it.",
    "bug-devid-collision": "One devid for two devices behind hubs.",
    "bug-identical-devices": "Always selecting the first of two identical devices.",
    "bug-zero-length": "A zero-length bulk transfer refused.",
    "bug-dropped-silently": "Requests above a limit dropped without an answer.",
}
"""Each rule in one sentence, with its origin; the last part names bugs that must not recur."""

PENDING: Final[dict[str, str]] = {}
"""The rules without a test, each with the reason."""
