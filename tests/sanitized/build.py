"""Builds build/asan: a copy of this working copy, with its compiled modules and its Python under sanitizers.

    tree/     a copy of what the suite needs, with the modules of lib/
    venv/     an environment whose python is python.c; it finds tree/ and the packages of .venv
    lib/      the compiled modules, with the sanitizers and the counters of edges that libFuzzer reads
    reports/  what the sanitizers found; unprivileged processes may write there

Run by `make asan` and `make fuzz`, with the python of .venv.  Does not change the usual build in .venv and
usbipd/.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HERE: Final = ROOT / "build" / "asan"
PYTHON: Final = Path(__file__).with_name("python.c")
TREE: Final = HERE / "tree"
VENV: Final = HERE / "venv"
LIB: Final = HERE / "lib"
REPORTS: Final = HERE / "reports"
CLANG: Final = os.environ.get("CLANG", "clang")
EXIT_CODE: Final = "86"
COPIED: Final = (
    "usbipd",
    "cython",
    "tests",
    "packaging",
    "man",
    "docs",
    "pyproject.toml",
    "setup.py",
    "README.md",
)
KEPT: Final = ("mac", "libusb")
"""Directories of build that each new tree shares, so that libusb's source is fetched only once."""

SANITIZERS: Final = "address,undefined"
COMPILE: Final = ["-g", "-fno-wrapv", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})


def config(name: str) -> str:
    return str(sysconfig.get_config_var(name) or "")


def clang_says(option: str) -> Path:
    answer = subprocess.run([CLANG, option], check=True, capture_output=True, text=True)
    return Path(answer.stdout.strip())


def build_python() -> None:
    """Creates the environment and puts the interpreter into it."""
    if not VENV.exists():
        run(sys.executable, "-m", "venv", "--without-pip", VENV)
        packages = VENV / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (packages / "tree.pth").write_text(f"{TREE}\n{sysconfig.get_path('purelib')}\n")
    fuzzer = f"lib/linux/libclang_rt.fuzzer_no_main-{platform.machine()}.a"
    texts = {
        "REPORTS": REPORTS,
        "EXIT_CODE": EXIT_CODE,
        "SUPPRESSIONS": TREE / "tests" / "sanitized" / "leaks.txt",
        "SYMBOLIZER": clang_says("--print-prog-name=llvm-symbolizer"),
    }
    new = VENV / "bin" / "python.new"
    run(
        CLANG,
        *COMPILE,
        f"-fsanitize={SANITIZERS}",
        *(f'-D{name}="{text}"' for name, text in texts.items()),
        f"-I{config('INCLUDEPY')}",
        PYTHON,
        "-o",
        new,
        "-Wl,--export-dynamic,--whole-archive",
        clang_says("--print-resource-dir") / fuzzer,
        "-Wl,--no-whole-archive",
        *(f"-L{config('LIBDIR')}", f"-Wl,-rpath,{config('LIBDIR')}", f"-lpython{config('LDVERSION')}"),
        *("-lstdc++", "-lm", "-ldl"),
    )
    for name in ("python", "python3"):
        (VENV / "bin" / name).unlink(missing_ok=True)
    new.rename(VENV / "bin" / "python")


def build_modules() -> None:
    flags = " ".join([*COMPILE, f"-fsanitize=fuzzer-no-link,{SANITIZERS}"])
    run(
        *(sys.executable, "setup.py", "--quiet", "build_ext", "--force"),
        *("--build-lib", LIB, "--build-temp", HERE / "temp"),
        CC=CLANG,
        CFLAGS=flags,
        LDSHARED=f"{CLANG} -shared {flags}",
    )


def copy_tree() -> None:
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, TREE / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, TREE / name)
    (TREE / "build").mkdir()
    for name in KEPT:
        (HERE.parent / name).mkdir(exist_ok=True)
        (TREE / "build" / name).symlink_to(HERE.parent / name)
    for module in (LIB / "usbipd").glob("*.so"):
        shutil.copy2(module, TREE / "usbipd")


def reports() -> list[Path]:
    """What the sanitizers have found; a worker's file exists, empty, from the start."""
    return sorted(each for each in REPORTS.iterdir() if each.stat().st_size)


def empty_reports() -> None:
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    REPORTS.chmod(0o1777)


def main() -> None:
    HERE.mkdir(parents=True, exist_ok=True)
    built = HERE / ".built"
    sources = [*(ROOT / "cython").iterdir(), ROOT / "setup.py", Path(__file__), PYTHON]
    if not built.exists() or built.stat().st_mtime < max(
        each.stat().st_mtime for each in sources if each.is_file()
    ):
        built.unlink(missing_ok=True)
        build_python()
        build_modules()
        built.touch()
    copy_tree()
    empty_reports()


if __name__ == "__main__":
    main()
