"""`make demo`: the whole chain once, for a person to read.  Exits with 0 only if every check passed.

Starts the daemon with simulated devices on a free port, lists and imports one over TCP as any client would,
reads its descriptors, sends a MiB through it and back, shows the status, and stops the daemon.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.client import Client, Session
from usbipd.protocol.constants import (
    USB_DIR_IN,
    USB_DT_CONFIG,
    USB_DT_DEVICE,
    USB_DT_STRING,
    USB_REQ_GET_DESCRIPTOR,
)
from usbipd.simulated.loopback import LOOPBACK_IN, LOOPBACK_OUT, Loopback
from usbipd.usb.descriptors import parse_configuration

PROGRAMS: Final = Path(sys.executable).parent
START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 10.0

MEBIBYTE: Final = 1 << 20
CHUNK: Final = 64 * 1024


class WrongError(Exception):
    """A check failed."""


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def check(right: bool, what: str) -> None:
    if not right:
        raise WrongError(what)
    print(f"    ok: {what}", flush=True)


def command(*arguments: str, shown: bool = True) -> str:
    """The output of one of our commands, which must succeed."""
    done = subprocess.run(
        [PROGRAMS / arguments[0], *arguments[1:]], capture_output=True, text=True, check=False
    )
    if shown:
        print(f"$ {' '.join(arguments)}\n{done.stdout}", end="", flush=True)
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode != 0:
        raise WrongError(f"{arguments[0]} exited with code {done.returncode}")
    return done.stdout


def wait_until_up(daemon: "subprocess.Popen[bytes]") -> None:
    """Show the daemon's message that it is up."""
    assert daemon.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    said = ""
    while not ("attach" in said and said.endswith("\n")):
        if not select.select([daemon.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise WrongError(f"the daemon was not up after {START_TIMEOUT:g} s")
        text = os.read(daemon.stdout.fileno(), 4096).decode()
        if not text:
            raise WrongError(f"the daemon exited with code {daemon.wait()}")
        print(text, end="", flush=True)
        said += text


def show_descriptors(session: Session) -> None:
    def descriptor(kind: int, index: int, length: int, language: int = 0) -> bytes:
        return session.control_in(
            USB_DIR_IN, USB_REQ_GET_DESCRIPTOR, kind << 8 | index, language, length=length
        )

    device = descriptor(USB_DT_DEVICE, 0, 18)
    check(device == Loopback({}).device_descriptor, f"device descriptor: {device.hex(' ')}")
    language = int.from_bytes(descriptor(USB_DT_STRING, 0, 255)[2:4], "little")
    for index in device[14:17]:
        print(
            f"    string {index}: {descriptor(USB_DT_STRING, index, 255, language)[2:].decode('utf-16-le')}"
        )
    header = descriptor(USB_DT_CONFIG, 0, 9)
    configuration = parse_configuration(descriptor(USB_DT_CONFIG, 0, int.from_bytes(header[2:4], "little")))
    addresses = sorted(endpoint.bEndpointAddress for endpoint in configuration.endpoints)
    check(
        {LOOPBACK_OUT, LOOPBACK_IN} <= set(addresses),
        f"endpoints: {' '.join(f'{a:#04x}' for a in addresses)}",
    )


def send_through(session: Session) -> None:
    data = os.urandom(MEBIBYTE)
    began = time.monotonic()
    reads = [session.submit(LOOPBACK_IN, length=CHUNK) for _ in range(0, len(data), CHUNK)]
    writes = [
        session.submit(LOOPBACK_OUT, data=data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)
    ]
    written = sum(session.wait_submit(seqnum).actual_length for seqnum in writes)
    answers = [session.wait_submit(seqnum) for seqnum in reads]
    took = time.monotonic() - began
    check(written == len(data), f"the device accepted {written} bytes")
    check(
        b"".join(answer.data for answer in answers) == data,
        f"and read the same data back, after {took * 1000:.0f} ms",
    )


def show(socket_path: Path, daemon: "subprocess.Popen[bytes]") -> list[int]:
    """Shows everything while the daemon runs; returns the pids of its processes."""
    wait_until_up(daemon)
    at = ["--socket", str(socket_path)]
    status = json.loads(command("usbipd", "status", "--json", *at, shown=False))["status"]
    host, _, port = status["listening"][0].rpartition(":")

    step("List the devices as another machine")
    command("usbipd", "list", "--remote", f"{host}:{port}")
    client = Client(host, int(port))
    identity = Loopback.device_descriptor[8:12]
    busids = [
        device.busid
        for device in client.devlist()
        if device.idVendor.to_bytes(2, "little") + device.idProduct.to_bytes(2, "little") == identity
    ]
    check(len(busids) == 1, f"the loopback device is {' '.join(busids)}")

    step(f"Import {busids[0]}, read its descriptors")
    with client.import_device(busids[0]) as session:
        show_descriptors(session)
        step("A MiB through the device and back")
        send_through(session)
        step("Show the daemon's status")
        text = command("usbipd-ext", "--status", *at)
        check("attached" in text, "the device is attached")
    return [process["pid"] for process in status["processes"]]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="usbipd-demo-") as directory:
        socket_path = Path(directory) / "run" / "control.sock"
        step("Start the daemon with simulated devices")
        arguments = [
            "--run",
            "--listen",
            "127.0.0.1:0",
            "--simulate",
            "mass-storage,keyboard,serial,loopback",
        ]
        arguments += ["--socket", str(socket_path), "--log-level", "warning"]
        print(f"$ usbipd-ext {' '.join(arguments)}", flush=True)
        daemon = subprocess.Popen([PROGRAMS / "usbipd-ext", *arguments], stdout=subprocess.PIPE)
        try:
            pids = show(socket_path, daemon)
            step("Stop")
            began = time.monotonic()
            daemon.send_signal(signal.SIGINT)
            code = daemon.wait(STOP_TIMEOUT)
            check(code == 0, f"the daemon exited with code 0 after {time.monotonic() - began:.2f} s")
            while any(map(is_running, pids)) and time.monotonic() < began + STOP_TIMEOUT:
                time.sleep(0.02)  # children of a dead parent disappear once init reaps them
            check(not any(map(is_running, pids)), f"all {len(pids)} processes have exited")
            check(not socket_path.parent.exists(), "all files are removed")
        except (WrongError, subprocess.TimeoutExpired) as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            return 1
        finally:
            daemon.kill()
            daemon.wait()
    print("\nAll steps succeeded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
