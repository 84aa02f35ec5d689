"""`make demo`: the whole chain once, shown to a human.  Exit code 0 only if all of it was right.

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
    """Something was not as it should be."""


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def check(right: bool, what: str) -> None:
    if not right:
        raise WrongError(what)
    print(f"    ok: {what}", flush=True)


def command(*arguments: str, shown: bool = True) -> str:
    """What a command of ours prints; it must succeed."""
    done = subprocess.run(
        [PROGRAMS / arguments[0], *arguments[1:]], capture_output=True, text=True, check=False
    )
    if shown:
        print(f"$ {' '.join(arguments)}\n{done.stdout}", end="", flush=True)
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode != 0:
        raise WrongError(f"{arguments[0]} ended with code {done.returncode}")
    return done.stdout


def wait_until_up(daemon: "subprocess.Popen[bytes]") -> None:
    """Show what the daemon says of itself once it is up."""
    assert daemon.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT
    said = ""
    while not ("attach" in said and said.endswith("\n")):
        if not select.select([daemon.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise WrongError(f"the daemon was not up after {START_TIMEOUT:g} s")
        text = os.read(daemon.stdout.fileno(), 4096).decode()
        if not text:
            raise WrongError(f"the daemon ended with code {daemon.wait()}")
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
    check(written == len(data), f"the device took {written} bytes")
    check(
        b"".join(answer.data for answer in answers) == data,
        f"and gave the same back, after {took * 1000:.0f} ms",
    )


def show(socket_path: Path, daemon: "subprocess.Popen[bytes]") -> list[int]:
    """Everything while the daemon runs; the pids of its processes."""
    wait_until_up(daemon)
    at = ["--socket", str(socket_path)]
    status = json.loads(command("usbipd", "status", "--json", *at, shown=False))["status"]
    host, _, port = status["listening"][0].rpartition(":")

    step("What another machine sees")
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
        step("The daemon meanwhile")
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
            check(code == 0, f"the daemon ended with code 0 after {time.monotonic() - began:.2f} s")
            while any(map(is_running, pids)) and time.monotonic() < began + STOP_TIMEOUT:
                time.sleep(0.02)  # children of a dead parent are gone when init has seen it
            check(not any(map(is_running, pids)), f"none of its {len(pids)} processes is left")
            check(not socket_path.parent.exists(), "nor is any file")
        except (WrongError, subprocess.TimeoutExpired) as error:
            print(f"\nWRONG: {error}", file=sys.stderr)
            return 1
        finally:
            daemon.kill()
            daemon.wait()
    print("\nAll of it works.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
