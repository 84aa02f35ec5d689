"""The block devices of a USB device: disks, partitions, and the volumes built on these.  Linux.

Runs in the extension, in threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from usbipd.text import readable


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """One block device, as sysfs shows it."""

    name: str
    """The kernel's name: sda1, dm-0, md127."""
    number: str
    """major:minor."""
    path: Path
    """Its directory in sysfs."""
    is_built: bool
    """Whether device-mapper, md or the like built it from others."""


def block_devices(sysfs: Path, device: Path) -> list[BlockDevice]:
    """Those of the USB device whose directory is `device`, each once and after those that it is built on.

    Raises `OSError` if one is removed meanwhile.
    """
    found: dict[str, BlockDevice] = {}
    for entry in sorted((sysfs / "class/block").glob("*")):
        path = entry.resolve()
        if device in path.parents:
            for block in _upwards(path, is_built=False):
                found.pop(block.name, None)  # a RAID array comes after its last disk
                found[block.name] = block
    return sorted(found.values(), key=lambda block: block.is_built)


def _upwards(path: Path, *, is_built: bool) -> Iterator[BlockDevice]:
    yield BlockDevice(path.name, (path / "dev").read_text().strip(), path, is_built)
    for holder in sorted((path / "holders").glob("*")):
        yield from _upwards(holder.resolve(), is_built=True)


def describe_built(block: BlockDevice) -> tuple[str, str]:
    """The description of a device that is built on others, and the command that stops it."""
    if (block.path / "md").is_dir():
        return f"RAID array /dev/{block.name}", f"mdadm --stop /dev/{block.name}"
    name, uuid = _attribute(block, "dm/name"), _attribute(block, "dm/uuid")
    if not name:
        return f"block device /dev/{block.name}", f"stop the program that created /dev/{block.name}"
    path = f"/dev/mapper/{name}"
    # the prefix names its creator: libdevmapper.h, dm_task_set_uuid
    if uuid.startswith("CRYPT-"):
        return f"encrypted volume {path}", f"cryptsetup close {name}"
    if uuid.startswith("LVM-"):
        return f"logical volume {path}", f"lvchange --activate n {path}"
    return f"mapped device {path}", f"dmsetup remove {name}"


def _attribute(block: BlockDevice, name: str) -> str:
    try:
        return readable((block.path / name).read_bytes().strip())
    except OSError:
        return ""


def numbers_of_partners(sysfs: Path, blocks: list[BlockDevice]) -> set[str]:
    """major:minor of all devices that share a btrfs with one of `blocks`: the mount table names only one."""
    names = {block.name for block in blocks}
    numbers: set[str] = set()
    for directory in (sysfs / "fs/btrfs").glob("*/devices"):
        members = list(directory.iterdir())
        if names.intersection(member.name for member in members):
            numbers.update((member / "dev").read_text().strip() for member in members)
    return numbers
