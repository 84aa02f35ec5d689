"""Which devices are shared, and with which clients.  Runs in the extension.

A binding is a rule that a user made with `usbipd bind`; the store keeps it.  Bindings of simulated devices
last as long as the daemon.  The `[[access]]` tables of the configuration can restrict access further.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, NamedTuple

from usbipd.access import AccessList
from usbipd.config import AccessRule
from usbipd.errors import UsageError, UsbipdError
from usbipd.extension.store import Binding, Store
from usbipd.ipc.control_messages import BindingInfo
from usbipd.ipc.messages import LARGEST_ANSWER, encode
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.identity import DeviceRule

_LOG: Final = logging.getLogger(__name__)

MOST_BYTES: Final = LARGEST_ANSWER // 8
"""Bytes of all bindings in an answer, at most: 1 KiB for each of 1,000.  The rest of the answer is for the
devices."""
CREATED_BY_US: Final = "usbipd-ext"
"""The creator of the bindings of simulated devices."""

_Place = tuple[int | None, int | None, str | None]
"""idVendor, idProduct and, if the rule is for one port, its busid."""


class DeviceAccess(NamedTuple):
    """Which clients can see a device and use it; equal for two devices with the same lists."""

    any_of: tuple[AccessList, ...]
    """Of the bindings that share it."""
    all_of: tuple[AccessList, ...]
    """Of the `[[access]]` tables that match it."""

    def allows(self, address: str) -> bool:
        """Whether a client at `address` can use the device."""
        return any(access.allows(address) for access in self.any_of) and all(
            access.allows(address) for access in self.all_of
        )


class Bindings:
    """All bindings of this daemon."""

    def __init__(self, store: Store, access: Sequence[AccessRule]) -> None:
        self._store = store
        self._kept: dict[DeviceRule, Binding] = {}
        self._simulated: dict[DeviceRule, Binding] = {}
        self._by_place: defaultdict[_Place, dict[DeviceRule, Binding]] = defaultdict(dict)
        """All of both.  An index: with 1,000 devices, comparing each with each binding takes too long."""
        self._lists: dict[DeviceRule, AccessList] = {}
        self._access = [(table.rule, AccessList(table.allow)) for table in access]

    async def load(self) -> None:
        """Read the bindings from the store.  Raises `UsbipdError`."""
        for binding in await self._store.bindings():
            self._put(binding, self._kept)
            try:
                self._lists[binding.rule] = AccessList(binding.allow)
            except UsageError as error:  # e.g. written by another release
                _LOG.error("%s: invalid allow list, access denied to all clients: %s", binding.rule, error)

    def all(self) -> list[Binding]:
        """All bindings, in the order in which they were made."""
        return [*self._simulated.values(), *self._kept.values()]

    def matching(self, record: DeviceRecord) -> list[Binding]:
        """The bindings that share this device; none: it is not shared."""
        return [
            binding
            for busid in (record.busid, None)
            for binding in self._by_place.get((record.vendor_id, record.product_id, busid), {}).values()
            if binding.rule.fits(record)
        ]

    def describe(self, bindings: Sequence[Binding], records: Sequence[DeviceRecord]) -> list[BindingInfo]:
        """`bindings` as reported to users, each with the devices among `records` that it shares."""
        busids: defaultdict[DeviceRule, list[str]] = defaultdict(list)
        for record in records:
            for binding in self.matching(record):
                busids[binding.rule].append(record.busid)
        return [binding_info(binding, busids[binding.rule]) for binding in bindings]

    def access_to(self, record: DeviceRecord) -> "DeviceAccess":
        """Which clients can see the device and use it."""
        lists = (self._lists.get(binding.rule) for binding in self.matching(record))
        return DeviceAccess(
            tuple(access for access in lists if access is not None),
            tuple(access for rule, access in self._access if rule.fits(record)),
        )

    def bind_simulated(self, record: DeviceRecord) -> None:
        """Share a simulated device."""
        rule = DeviceRule.of_port(record)
        self._lists[rule] = AccessList(())
        binding = Binding(
            rule=rule, product=record.product, allow=(), created=time.time(), created_by=CREATED_BY_US
        )
        self._put(binding, self._simulated)

    async def add(self, binding: Binding, *, simulated: bool) -> None:
        """Add a binding, or replace the one with the same rule.  On `UsbipdError`, nothing has changed."""
        access = AccessList(binding.allow)
        others = [each for each in self.all() if each.rule != binding.rule]
        if sum(len(encode(binding_info(each, []))) for each in (*others, binding)) > MOST_BYTES:
            raise UsbipdError(
                f"cannot add another binding: limit reached ({len(others)} bindings)",
                code="too-many-bindings",
                advice="unbind devices you do not need, or merge neighbouring addresses into one network",
            )
        if simulated:
            self._put(binding, self._simulated)
        else:
            await self._store.add_binding(binding)
            self._put(binding, self._kept)
        self._lists[binding.rule] = access

    async def remove(self, bindings: Sequence[Binding]) -> None:
        """Remove these bindings.  On `UsbipdError`, nothing has changed."""
        kept = [binding.rule for binding in bindings if binding.rule in self._kept]
        if kept:
            await self._store.remove_bindings(kept)
        for binding in bindings:
            self._kept.pop(binding.rule, None)
            self._simulated.pop(binding.rule, None)
            self._lists.pop(binding.rule, None)
            place = _place(binding.rule)
            self._by_place[place].pop(binding.rule, None)
            if not self._by_place[place]:
                del self._by_place[place]

    def _put(self, binding: Binding, among: dict[DeviceRule, Binding]) -> None:
        among[binding.rule] = self._by_place[_place(binding.rule)][binding.rule] = binding


def _place(rule: DeviceRule) -> _Place:
    return rule.vendor_id, rule.product_id, rule.busid


def binding_info(binding: Binding, busids: list[str]) -> BindingInfo:
    """The binding as reported to users; `busids` are the devices that it shares."""
    rule = binding.rule
    assert rule.vendor_id is not None, "a binding names a device"
    assert rule.product_id is not None, "a binding names a device"
    return BindingInfo(
        vendor_id=rule.vendor_id,
        product_id=rule.product_id,
        serial=rule.serial,
        busid=rule.busid,
        product=binding.product,
        allow=list(binding.allow),
        created=binding.created,
        created_by=binding.created_by,
        devices=busids,
    )
