"""Builds the compiled parts of usbipd: the packet pump, the claim and, on macOS, the view of the IORegistry.

Everything else about the package is in pyproject.toml.  The sources are in cython/, the modules are
usbipd._pump, usbipd._claim and usbipd._iokit.  A wheel also contains the usb.ids that `make usb-ids` fetched.

With USBIPD_DEBUG in the environment they are built for debuggers, as by `make debug`:
not optimized, with Cython's checks, and with each line reported to trace functions.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py


def pkg_config(option: str, package: str) -> list[str]:
    """The flags that pkg-config prints for `package`; exits with advice if it fails."""
    try:
        answer = subprocess.run(
            ["pkg-config", option, package], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(
            f"usbipd needs {package} 1.0.26 or newer with its headers, and pkg-config to find it ({error}).\n"
            "Debian: apt install libusb-1.0-0-dev pkg-config    macOS: brew install libusb pkg-config"
        )
    return shlex.split(answer)


class BuildWithUsbIds(build_py):
    """Copies a fetched usb.ids and its licence to where usbipd/cli/usb_ids.py reads it."""

    def run(self) -> None:
        super().run()
        fetched = Path("build/usb.ids")
        if fetched.exists() and not self.editable_mode:
            for file in (fetched, Path("packaging/usb.ids.LICENSE")):
                self.copy_file(str(file), str(Path(self.build_lib, "usbipd", file.name)))


DEBUG = "USBIPD_DEBUG" in os.environ
compile_args = ["-Wall", "-Wno-unused-function"]
directives: dict[str, object] = {"language_level": "3", "freethreading_compatible": False}
if DEBUG:
    compile_args += ["-O0", "-g", "-DCYTHON_TRACE=1", "-DCYTHON_TRACE_NOGIL=1"]
    directives |= {"linetrace": True, "boundscheck": True, "wraparound": True, "nonecheck": True}
else:
    compile_args += ["-O2"]

libusb = {
    "extra_compile_args": [*compile_args, *pkg_config("--cflags", "libusb-1.0")],
    "extra_link_args": pkg_config("--libs", "libusb-1.0"),
    "include_dirs": ["cython"],
}

modules = [
    Extension("usbipd._pump", ["cython/pump.pyx"], **libusb),
    Extension("usbipd._claim", ["cython/claim.pyx"], **libusb),
]
if sys.platform == "darwin":
    frameworks = ["-framework", "IOKit", "-framework", "CoreFoundation"]
    modules.append(
        Extension(
            "usbipd._iokit",
            ["cython/iokit.pyx"],
            extra_compile_args=compile_args,
            extra_link_args=frameworks,
            include_dirs=["cython"],
        )
    )

setup(
    cmdclass={"build_py": BuildWithUsbIds},
    ext_modules=cythonize(
        modules,
        build_dir=None if DEBUG else "build/cython",
        include_path=["cython"],
        compiler_directives=directives,
        emit_linenums=DEBUG,
    ),
)
