"""Builds the virtual machine's image: a Debian kernel, an initramfs, and tools that the host may lack.

Runs on the host, as any user.  Everything comes from Debian packages, which `apt-get download` fetches (it
needs apt's package lists, not root), and is kept under build/e2e/:

    debs/       the downloaded packages
    image/      kernel, initramfs, and layer/: a tree of tools and kernel modules that the guest sees
                wherever the host's own / has no such file

An image is built once, and rebuilt when this file or the initramfs's /init changes; `rm -r build/e2e` makes
the next build use newer packages.
"""

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VM: Final = Path(__file__).resolve().parent
BUILD: Final = VM.parents[2] / "build" / "e2e"

# The first that apt knows.  In Debian 12 linux-image-amd64 is 6.1, whose dummy_hcd moves data at each kernel
# tick, every 4 ms; that of 6.12 has a 125 us timer.  Debian 13 has 6.12 under that name.
KERNELS: Final = ("linux-image-6.12-amd64", "linux-image-amd64")

TOOLS: Final = (
    # the stock client, and the kernel's own server (usbipd, which needs libwrap) to check the machine with
    ("usbip", "libwrap0"),
    # ip: failing networks; ss: cut connections
    ("iproute2", "libbpf1", "libbsd0", "libelf1", "libmd0", "libmnl0", "libtirpc3", "libcap2"),
    # arecord
    ("alsa-utils", "libasound2", "libasound2-data"),
    # mkfs.ext4
    ("e2fsprogs", "libext2fs2", "libcom-err2", "libss2"),
    # modprobe, depmod; udevd
    ("kmod", "libkmod2", "udev"),
    # process 1 of the installed scenario, with the libraries that only it links
    ("systemd", "libsystemd-shared", "libseccomp2", "libapparmor1", "libip4tc2"),
)

# Needed by the initramfs to mount the host's / over 9p under an overlay; virtio itself is built in.
BOOT_MODULES: Final = ("9pnet_virtio", "9p", "overlay")
# Loaded by the guest later.  There are no udev rules to load a driver when its device appears.
GUEST_MODULES: Final = (
    *(
        "dummy_hcd",
        "libcomposite",
        "usb_f_mass_storage",
        "usb_f_ss_lb",
        "usb_f_fs",
    ),  # real devices: gadget side
    *("vhci-hcd", "usbip-host"),  # the stock client; the kernel's own server
    *("veth", "tcp_diag"),  # a failing network; used by ss -K to cut a connection
    *("usb-storage", "sd_mod", "ext4", "crc32c_generic"),
    *("usbhid", "hid-generic", "evdev"),
    *("cdc-acm", "snd-usb-audio"),
)
# Needed by only one scenario, which loads them itself.  configfs loads the functions of gadgets.
MORE_MODULES: Final = (
    *("usb_f_acm", "usb_f_hid"),
    "usbtest",
    "xhci-pci",
    "uvcvideo",
)


@dataclass(frozen=True)
class Image:
    """The files that a machine boots."""

    kernel: Path
    initramfs: Path
    layer: Path


class PrepareError(Exception):
    """The image cannot be built; the message says how to fix it."""


def prepare() -> Image:
    """The image, built if necessary.  Raises `PrepareError`."""
    image = BUILD / "image"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = hashlib.sha256(Path(__file__).read_bytes() + (VM / "initramfs.sh").read_bytes()).hexdigest()
        if not _is_made(image, stamp):
            shutil.rmtree(image, ignore_errors=True)
            _make(image)
            (image / "stamp").write_text(stamp)
    return Image(image / "vmlinuz", image / "initramfs.gz", image / "layer")


def _is_made(image: Path, stamp: str) -> bool:
    try:
        return (image / "stamp").read_text() == stamp
    except FileNotFoundError:
        return False


def _make(image: Path) -> None:
    for program in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
        if shutil.which(program) is None:
            raise PrepareError(f"no {program}: the virtual machine is built on Debian, from its packages")
    if (architecture := _output("dpkg", "--print-architecture").strip()) != "amd64":
        raise PrepareError(f"the virtual machine is amd64, but the programs of this host are {architecture}")
    print(f"e2e: preparing the virtual machine in {BUILD}", file=sys.stderr)
    layer = image / "layer"
    _merge_usr(layer)
    kernel = _kernel_package()
    for package in (_name_here(package) for group in TOOLS for package in group):
        # without udev rules: udevd only notifies libusb of devices, see guest_init.sh
        _unpack(_download(package), layer, "--exclude=./usr/share/doc", "--exclude=*/udev/rules.d")
    _merge_usr(image / "kernel")
    _unpack(_download(kernel), image / "kernel", "--exclude=./usr/share")
    version = kernel.removeprefix("linux-image-")
    (image / "kernel" / "boot" / f"vmlinuz-{version}").rename(image / "vmlinuz")
    _install_modules(image / "kernel" / "lib" / "modules" / version, layer)
    shutil.rmtree(image / "kernel")
    _pack_initramfs(layer, version, image)


def _kernel_package() -> str:
    """The current kernel package of the first known metapackage of KERNELS."""
    for metapackage in KERNELS:
        for line in _output("apt-cache", "depends", metapackage).splitlines():
            relation, _, name = line.strip().partition(": ")
            if relation == "Depends" and name.startswith("linux-image-"):
                return name
    raise PrepareError(
        f"apt knows no package {' or '.join(KERNELS)}.  Is this Debian 12 or 13, with its security updates "
        "in apt's sources?  Run `apt-get update` as root, then try again."
    )


def _name_here(package: str) -> str:
    """The name of a library package in this Debian: since 13, many have t64 in their name (64-bit time_t)."""
    renamed = f"{package}t64"
    return renamed if renamed in _output("apt-cache", "pkgnames", renamed).split() else package


def _download(package: str) -> Path:
    debs = BUILD / "debs"
    debs.mkdir(exist_ok=True)
    found = sorted(debs.glob(f"{package}_*.deb"))
    if not found:
        # The sandbox user _apt, which apt uses when run as root, cannot write here and is not needed.
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        if subprocess.run(command, cwd=debs, stdout=sys.stderr, check=False).returncode != 0:
            raise PrepareError(f"cannot download {package}.  Run `apt-get update` as root, then try again.")
        found = sorted(debs.glob(f"{package}_*.deb"))
    return found[-1]


def _merge_usr(directory: Path) -> None:
    """Create the host's /usr merge in an empty tree: packages of Debian 12 use /lib, those of 13 /usr/lib."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (directory / "usr" / name).mkdir(parents=True)
        (directory / name).symlink_to(f"usr/{name}")


def _unpack(deb: Path, directory: Path, *tar_options: str) -> None:
    """Like `dpkg-deb --extract`, but follows symlinks to directories (/lib) and takes tar's options."""
    directory.mkdir(exist_ok=True)
    command = ["tar", "-x", "-C", str(directory), "--keep-directory-symlink", "--no-same-owner", *tar_options]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as files:
        tar = subprocess.run(command, stdin=files.stdout, check=False)
    if files.returncode != 0 or tar.returncode != 0:
        deb.unlink()  # most likely an interrupted download
        raise PrepareError(f"cannot unpack {deb.name}; it has been deleted, try again")


def _install_modules(source: Path, layer: Path) -> None:
    """Install the modules named above and their dependencies, decompressed, in `layer`."""
    _depmod(layer, source.parents[2], source.name)
    dependencies = _dependencies(source)
    target = layer / "lib" / "modules" / source.name
    for path in _load_order(dependencies, (*BOOT_MODULES, *GUEST_MODULES, *MORE_MODULES)):
        module = target / path.removesuffix(".xz")
        module.parent.mkdir(parents=True, exist_ok=True)
        data = (source / path).read_bytes()
        module.write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    for index in source.glob("modules.builtin*"):
        shutil.copy(index, target)
    shutil.copy(source / "modules.order", target)
    (target / "modules.e2e").write_text("\n".join(GUEST_MODULES) + "\n")
    _depmod(layer, layer, source.name)


def _depmod(layer: Path, base: Path, version: str) -> None:
    """Index the modules below `base` with `layer`'s depmod; the host may have none."""
    subprocess.run(
        ["depmod", "-b", base, version],
        executable=layer / "bin" / "kmod",  # sbin/depmod is an absolute symlink to /bin/kmod
        env={**os.environ, "LD_LIBRARY_PATH": f"{layer}/usr/lib/x86_64-linux-gnu"},
        check=True,
    )


def _dependencies(modules: Path) -> dict[str, list[str]]:
    """modules.dep: each module's path, and the paths of its dependencies, nearest first."""
    lines = (modules / "modules.dep").read_text().splitlines()
    return {path: needs.split() for path, _, needs in (line.partition(":") for line in lines)}


def _load_order(dependencies: dict[str, list[str]], names: Iterable[str]) -> Iterator[str]:
    """Paths of the modules `names` and their dependencies, each once, after its own dependencies."""
    by_name = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in dependencies}
    order: dict[str, None] = {}
    for name in names:
        path = by_name.get(name.replace("-", "_"))
        if path is None:
            raise PrepareError(f"the kernel has no module {name}; update the lists in {__file__}")
        order.update(dict.fromkeys([*reversed(dependencies[path]), path]))
    return iter(order)


def _pack_initramfs(layer: Path, version: str, image: Path) -> None:
    root = image / "initramfs"
    (root / "bin").mkdir(parents=True)
    busybox = image / "busybox"
    _merge_usr(busybox)
    _unpack(_download("busybox-static"), busybox)
    shutil.copy(busybox / "bin" / "busybox", root / "bin")
    (root / "modules").mkdir()
    modules = layer / "lib" / "modules" / version
    order = list(_load_order(_dependencies(modules), BOOT_MODULES))
    for path in order:
        shutil.copy(modules / path, root / "modules")
    (root / "modules" / "order").write_text("".join(f"{Path(path).name}\n" for path in order))
    shutil.copy(VM / "initramfs.sh", root / "init")
    (root / "init").chmod(0o755)
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        [root / "bin" / "busybox", "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    ).stdout
    (image / "initramfs.gz").write_bytes(gzip.compress(archive, compresslevel=6))
    shutil.rmtree(root)
    shutil.rmtree(busybox)


def _output(*command: str) -> str:
    """The answer to a query of the package system; empty if it knows nothing."""
    english = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, env=english, check=False).stdout


if __name__ == "__main__":
    try:
        print(prepare())
    except PrepareError as error:
        sys.exit(f"e2e: {error}")
