"""What the NVIDIA driver's tools say, read by pure functions: driver, CUDA, cards, processes on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Since driver 610 the header says KMD Version and CUDA UMD Version (docs.nvidia.com/deploy/nvidia-smi).
_DRIVER = re.compile(r"(?:Driver|KMD) Version *: *(\d+(?:\.\d+)+)")
_CUDA = re.compile(r"CUDA (?:UMD )?Version *: *(\d+\.\d+)")
# "NVIDIA UNIX x86_64 Kernel Module  535.54.03  …" and "NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  …"
_KERNEL = re.compile(r"^NVRM version:.*?Kernel Module(?: for \S+)? +(\d+(?:\.\d+)+)", re.MULTILINE)
CARD_FIELDS = "index,name,memory.total,memory.free,compute_cap"
# nvidia-smi 470 does not know the last one (huggingface/candle issue 733).
OLD_CARD_FIELDS = CARD_FIELDS.removesuffix(",compute_cap")
PROCESS_FIELDS = "pid,process_name,used_memory"
MIB = 2**20
# CUDA's major version → the driver branch it needs at least, on Linux. "CUDA Compatibility", table 1
# (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, read in 2026-11).
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
# Branches of desktop and data-centre drivers; Jetson's (35, 36) have other numbers.
_FIRST_BRANCH = 300


@dataclass(frozen=True)
class Driver:
    """Version of the driver and the highest CUDA it supports; None: not said."""

    version: str | None
    cuda: tuple[int, int] | None

    @property
    def branch(self) -> int | None:
        """570 of 570.133.07; None for numbers of another kind."""
        number = int(self.version.split(".")[0]) if self.version else 0
        return number if number >= _FIRST_BRANCH else None


@dataclass(frozen=True)
class Card:
    """A card as nvidia-smi lists it; memory in bytes, None where the driver does not say."""

    index: int
    name: str
    total: int | None
    free: int | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Tenant:
    """A process on a card; memory in bytes, None where the driver does not say (inside most containers)."""

    pid: int
    name: str
    used: int | None


def driver_of_smi(text: str) -> Driver:
    """Driver and CUDA in the header of `nvidia-smi`, or in `nvidia-smi -q`."""
    driver, cuda = _DRIVER.search(text), _CUDA.search(text)
    return Driver(driver[1] if driver else None, version_pair(cuda[1]) if cuda else None)


def driver_of_proc(text: str) -> Driver:
    """The driver in the kernel, from /proc/driver/nvidia/version."""
    found = _KERNEL.search(text)
    return Driver(found[1] if found else None, None)


def version_pair(text: str | None) -> tuple[int, int] | None:
    """(12, 8) of "12.8"."""
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def cards_of_csv(text: str) -> list[Card]:
    """The lines of `--query-gpu=` CARD_FIELDS or OLD_CARD_FIELDS, `--format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        # No name of a card has a comma; what is no such line (a warning, an error) is left out.
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) in (4, 5) and cells[0].isdigit():
            capability = version_pair(cells[4]) if len(cells) == 5 else None
            found.append(Card(int(cells[0]), cells[1], _mib(cells[2]), _mib(cells[3]), capability))
    return found


def tenants_of_csv(text: str) -> list[Tenant]:
    """The lines of `--query-compute-apps=` PROCESS_FIELDS, `--format=csv,noheader,nounits`."""
    found = []
    for line in text.splitlines():
        # A process may have a comma in its name.
        first, _, rest = line.partition(",")
        name, _, used = rest.rpartition(",")
        if first.strip().isdigit():
            found.append(Tenant(int(first), name.strip(), _mib(used)))
    return found


def smi_trouble(text: str) -> tuple[str, str]:
    """Why `nvidia-smi` failed, from what it wrote, and the line that mends it."""
    said = next((line.strip() for line in text.splitlines() if line.strip()), "nvidia-smi ended without a word")
    if "version mismatch" in text:
        return said, "sudo reboot  # the driver was updated under a loaded kernel module; in a container, on the host"
    if "Unknown Error" in text:
        return said, "docker restart CONTAINER  # on the host: the container lost its card"
    if "No devices were found" in text:
        return said, "sudo dmesg | grep -i nvrm  # the driver is loaded but finds no card; rent another machine"
    return said, "sudo modprobe nvidia  # or install a driver: sudo apt-get install nvidia-driver-580"


def covered(architectures: list[str], capability: tuple[int, int]) -> str | None:
    """How a wheel's code reaches a card: "native", "ptx" (compiled at first use, by a driver of its CUDA), or None.

    Native code of sm_XY runs on cards of the same X and at least Y; sm_90a and sm_100a on that card alone; sm_100f on
    its family, which shares the X. PTX runs on every later card. (CUDA C++ Programming Guide, compatibility.)
    """
    ptx = False
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        built = (int(found[2]), int(found[3]))
        if found[1] == "compute":
            ptx |= capability == built if found[4] == "a" else capability >= built
        elif built == capability or (found[4] != "a" and built[0] == capability[0] and built[1] <= capability[1]):
            return "native"
    return "ptx" if ptx else None


def _mib(text: str) -> int | None:
    """Bytes of a number of MiB; "[N/A]" and "[Not Supported]" are None."""
    found = re.match(r"(\d+)", text.strip())
    return int(found[1]) * MIB if found else None
