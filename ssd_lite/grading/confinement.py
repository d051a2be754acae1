"""What a sandboxed interpreter may see: bubblewrap's options and Landlock's paths."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SCRATCH_BYTES = 64 << 20
INSIDE = Path(__file__).resolve().parent / "inside"


def interpreter() -> str:
    """The Python that programs run under: the one below the virtual environment, with links resolved."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _library_folders() -> list[str]:
    lib = os.path.join(sys.base_prefix, "lib")
    return list(dict.fromkeys([lib, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/lib32"]))


def _standard_library() -> str:
    return os.path.join(sys.base_prefix, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}")


def _third_party_folders() -> list[str]:
    names = [os.path.join(_standard_library(), name) for name in ("site-packages", "dist-packages")]
    return [path for path in [*names, "/usr/lib/python3/dist-packages"] if os.path.isdir(path)]


def bubblewrap_command() -> list[str]:
    """The bubblewrap options of tier A: no network, no host files but Python's, private /tmp, own process ids."""
    options = "--unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try"
    command = ["bwrap", *options.split(), "--uid", "65534", "--gid", "65534", "--die-with-parent", "--new-session"]
    command += ["--as-pid-1", "--cap-drop", "ALL", "--ro-bind", interpreter(), interpreter()]
    for folder in _library_folders():
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for folder in _third_party_folders():
        command += ["--tmpfs", folder, "--remount-ro", folder]
    command += ["--ro-bind", str(INSIDE), "/grading/inside", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp"]
    return [*command, "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]


def landlock_paths() -> tuple[list[str], list[str]]:
    """Paths to read and folders to list in tier B: the standard library without third-party packages, and /usr/lib."""
    hidden = {
        os.path.dirname(path) if path.startswith("/usr/lib/python3/") else path for path in _third_party_folders()
    }
    listable = [_standard_library(), *(folder for folder in _library_folders() if os.path.isdir(folder))]
    readable = [str(INSIDE), interpreter()]
    for folder in dict.fromkeys(os.path.realpath(path) for path in listable):
        entries = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
        readable += [path for path in entries if path not in hidden and path != os.path.realpath(_standard_library())]
    return readable, listable
