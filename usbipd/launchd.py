"""The launchd job that starts the extension on macOS, as people deal with it.  Used by CLI and extension."""

from pathlib import Path


def steps_to_load(job: Path) -> list[str]:
    """What brings back the job that the file `job` describes: switched off by the user, or never loaded.

    Since macOS 13 every user can switch such a job off; launchd then refuses to load it.
    """
    target = f"system/{job.stem}"
    return [
        "Open System Settings > General > Login Items & Extensions.",
        'Under "Allow in the Background" (or "App Background Activity"), switch usbipd on; '
        "it may stand there as usbipd-ext or under the name of who signed it.",
        f"Run `sudo launchctl enable {target}`.",
        f"Run `sudo launchctl bootstrap system {job}`.",
        f"See that it is there: `launchctl print {target}`.",
    ]
