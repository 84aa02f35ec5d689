"""The IORegistry: entries, iterators over them, and subscriptions to changes.  Runs in the kernel."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Value = int | str | bytes
Properties = dict[str, Value]


@dataclass(eq=False)
class Entry:
    """A node in the plane IOService.  `classes`: its class, then its base classes."""

    registry_id: int
    classes: tuple[str, ...]
    name: str
    properties: Properties
    parent: "Entry | None"
    usb_parent: "Entry | None" = None
    """In the plane IOUSB: the hub of a device."""
    children: list["Entry"] = field(default_factory=list)
    generation: int = 0
    """Version of its children: a change invalidates iterators over them."""
    terminated: bool = False
    subject: object = None
    """The kernel's device or interface that it represents."""

    def matches(self, class_name: str, properties: Properties) -> bool:
        return class_name in self.classes and all(
            self.properties.get(key) == value for key, value in properties.items()
        )

    def walk(self) -> Iterable["Entry"]:
        yield self
        for child in list(self.children):
            yield from child.walk()


class Iterator:
    """An iterator of a process.  Over children, it ends, invalid, when they change."""

    def __init__(self, found: Iterable[Entry], above: Entry | None = None) -> None:
        self._entries = list(found)
        self._above = above
        self._at = 0
        self._generation = above.generation if above else 0

    def next(self) -> Entry | None:
        if not self.valid or self._at == len(self._entries):
            return None
        self._at += 1
        return self._entries[self._at - 1]

    @property
    def valid(self) -> bool:
        return self._above is None or self._above.generation == self._generation

    def reset(self) -> None:
        self._at = 0
        if self._above is not None:
            self._generation = self._above.generation
            self._entries = list(self._above.children)


class Subscription(Iterator):
    """The iterator of a notification, sent when something arrives after the iterator was exhausted."""

    def __init__(
        self, kind: str, class_name: str, properties: Properties, notify: Callable[[], None]
    ) -> None:
        super().__init__([])
        self.kind = kind
        self.class_name = class_name
        self.properties = properties
        self._notify = notify
        self._armed = False

    def next(self) -> Entry | None:
        found = super().next()
        if found is None:
            self._armed = True
            self._entries.clear()
            self._at = 0
        return found

    def add(self, entry: Entry, *, quietly: bool = False) -> None:
        self._entries.append(entry)
        if self._armed and not quietly:
            self._armed = False
            self._notify()


TERMINATED = "IOServiceTerminate"


class Registry:
    """The tree.  `on_change` is called after each change of it."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._ids = itertools.count(0x100000300)
        self.entries: dict[int, Entry] = {}
        """Includes terminated ones: a process with a reference can read their properties."""
        self.subscriptions: list[Subscription] = []
        self.root = self.add(None, ("IORegistryEntry",), "Root")

    def add(
        self,
        parent: Entry | None,
        classes: tuple[str, ...],
        name: str = "",
        properties: Properties | None = None,
        *,
        usb_parent: Entry | None = None,
        subject: object = None,
    ) -> Entry:
        """A new entry; subscribers are notified."""
        entry = Entry(
            next(self._ids),
            (*classes, "IOService", "IORegistryEntry"),
            name or classes[0],
            dict(properties or {}),
            parent,
            usb_parent,
            subject=subject,
        )
        self.entries[entry.registry_id] = entry
        if parent is not None:
            parent.children.append(entry)
            parent.generation += 1
        for each in self.subscriptions:
            if each.kind != TERMINATED and entry.matches(each.class_name, each.properties):
                each.add(entry)
        self._on_change()
        return entry

    def terminate(self, entry: Entry) -> None:
        """Removes an entry and everything below it; subscribers are notified."""
        if entry.terminated:
            return
        for each in reversed(list(entry.walk())):
            each.terminated = True
            for subscription in self.subscriptions:
                if subscription.kind == TERMINATED and each.matches(
                    subscription.class_name, subscription.properties
                ):
                    subscription.add(each)
        if entry.parent is not None:
            entry.parent.children.remove(entry)
            entry.parent.generation += 1
        self._on_change()

    def find(self, class_name: str, properties: Properties) -> list[Entry]:
        return [each for each in self.root.walk() if each.matches(class_name, properties)]

    def subscribe(self, subscription: Subscription) -> None:
        self.subscriptions.append(subscription)
        if subscription.kind != TERMINATED:
            for each in self.find(subscription.class_name, subscription.properties):
                subscription.add(each, quietly=True)
