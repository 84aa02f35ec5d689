"""The modules that PyInstaller leaves out of the executable, tested with the Python of these tests."""

import subprocess
import sys

import onefile

WITHOUT = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split():
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Finder())
print("bücher.invalid".encode("idna").decode())
"""


def test_the_codecs_of_host_names_are_packed() -> None:
    excluded = " ".join(onefile.ANALYSIS["excludes"])
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", WITHOUT, excluded], capture_output=True, text=True, check=False
    )
    assert done.stdout == "xn--bcher-kva.invalid\n", done.stderr
