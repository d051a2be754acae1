"""What nvidia-smi and the kernel say, in the forms that drivers have given it; and cards against torch's wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssd_lite.stages.checkup import cards as doctor_cards
from ssd_lite.stages.checkup.cards import (
    CUDA_12_TORCH,
    NEW_DRIVER,
    Cards,
    ask_driver,
    card_finding,
    driver_finding,
    findings,
    tenants_finding,
    torch_finding,
)
from ssd_lite.stages.checkup.child import Probed
from ssd_lite.stages.checkup.nvidia import (
    Card,
    Driver,
    Tenant,
    cards_of_csv,
    covered,
    driver_of_proc,
    driver_of_smi,
    smi_trouble,
    tenants_of_csv,
)

MIB, GIB = 2**20, 2**30
# Headers as posted in public threads: driver 450, 550, a 470 tool over a 580 driver, 610 with its new words, and -q.
SMI_450 = """
Wed Jul 29 21:51:11 2020
+-----------------------------------------------------------------------------+
| NVIDIA-SMI 450.57       Driver Version: 450.57       CUDA Version: 11.0     |
|-------------------------------+----------------------+----------------------+
"""
SMI_550 = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.40.07              Driver Version: 550.40.07      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
|   0  NVIDIA GeForce RTX 4070        Off |   00000000:2D:00.0  On |                  N/A |
"""
SMI_470_ON_580 = "| NVIDIA-SMI 470.256.02   Driver Version: 580.95.05    CUDA Version: 13.0     |\n"
SMI_610 = """
Sun Jun  7 08:16:57 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 610.43.02              KMD Version: 610.43.02     CUDA UMD Version: 13.3     |
+-----------------------------------------+------------------------+----------------------+
"""
SMI_Q = """
==============NVSMI LOG==============

Timestamp                                 : Sat Oct 10 17:02:53 2020
Driver Version                            : 450.66
CUDA Version                              : 11.0
"""
SMI_331 = "| NVIDIA-SMI 331.62     Driver Version: 331.62         |\n"


@pytest.mark.parametrize(
    ("text", "version", "cuda"),
    [
        (SMI_450, "450.57", (11, 0)),
        (SMI_550, "550.40.07", (12, 4)),
        (SMI_470_ON_580, "580.95.05", (13, 0)),
        (SMI_610, "610.43.02", (13, 3)),
        (SMI_Q, "450.66", (11, 0)),
        (SMI_331, "331.62", None),
        ("| NVIDIA-SMI 535.54.03  Driver Version: 535.54.03  CUDA Version: N/A |", "535.54.03", None),
        ("", None, None),
    ],
)
def test_header_of_nvidia_smi(text: str, version: str | None, cuda: tuple[int, int] | None) -> None:
    assert driver_of_smi(text) == Driver(version, cuda)


@pytest.mark.parametrize(
    ("text", "version", "branch"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "535.54.03",
            535,
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  565.57.01  Release Build  (dvs-builder@U16-A24)\n"
            "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n",
            "565.57.01",
            565,
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  555.58  Release Build  (portage@x)", "555.58", 555),
        # A Jetson: another row of numbers, which is compared with nothing.
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  35.3.1  Release Build  (a@b)", "35.3.1", None),
        ("", None, None),
    ],
)
def test_kernel_module(text: str, version: str | None, branch: int | None) -> None:
    driver = driver_of_proc(text)
    assert (driver.version, driver.branch) == (version, branch)


def test_cards_with_and_without_capability_and_memory() -> None:
    assert cards_of_csv("0, NVIDIA GeForce RTX 4090, 24564, 24110, 8.9\n1, Tesla T4, 15360, 15109, 7.5\n") == [
        Card(0, "NVIDIA GeForce RTX 4090", 24564 * MIB, 24110 * MIB, (8, 9)),
        Card(1, "Tesla T4", 15360 * MIB, 15109 * MIB, (7, 5)),
    ]
    assert cards_of_csv("0, NVIDIA GB10, [N/A], [N/A], 12.1") == [Card(0, "NVIDIA GB10", None, None, (12, 1))]
    assert cards_of_csv("0, Tesla K80, 11441, 11441\n") == [Card(0, "Tesla K80", 11441 * MIB, 11441 * MIB, None)]
    assert cards_of_csv("0, GeForce GTX 680, 4095, [Not Supported], [N/A]")[0].capability is None
    assert cards_of_csv('Field "compute_cap" is not a valid field to query.\n\n') == []
    assert cards_of_csv("") == []


def test_processes_on_the_card() -> None:
    text = "4242, /usr/bin/python3, 18012\n77, [Not Found], [N/A]\n9, a, b.exe, 5\n"
    assert tenants_of_csv(text) == [
        Tenant(4242, "/usr/bin/python3", 18012 * MIB), Tenant(77, "[Not Found]", None), Tenant(9, "a, b.exe", 5 * MIB),
    ]  # fmt: skip
    assert tenants_of_csv("No running processes found\n") == []


@pytest.mark.parametrize(
    ("said", "mends"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 590.44\n", "sudo reboot"),
        ("Failed to initialize NVML: Unknown Error\n", "docker restart"),
        ("No devices were found\n", "sudo dmesg"),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
            "NVIDIA driver is installed and running.\n\n",
            "sudo modprobe nvidia",
        ),
        ("", "sudo modprobe nvidia"),
    ],
)
def test_failures_of_nvidia_smi_say_what_mends_them(said: str, mends: str) -> None:
    finding = driver_finding(None, Cards(Driver(None, None), trouble=smi_trouble(said)))
    assert finding.status == "fail"
    assert finding.advice.startswith(mends)
    assert finding.found == (said.splitlines() or ["nvidia-smi ended without a word"])[0]


RTX, T4 = Card(0, "NVIDIA GeForce RTX 4090", 24564 * MIB, 24110 * MIB, (8, 9)), Card(0, "Tesla T4", GIB, GIB, (7, 5))


def torch_with(cuda: str | None, *, available: bool = True, **more: Any) -> dict[str, Any]:
    card = {"index": 0, "name": RTX.name, "capability": [8, 9], "bf16": True, "error": "", **more}
    built = {"version": f"2.13.0+{cuda or 'cpu'}", "cuda": cuda, "rocm": None, "said": "", "available": available}
    architectures = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    return {**built, "architectures": architectures if available else [], "cards": [card] if available else []}


@pytest.mark.parametrize(
    ("driver", "cuda", "works", "status", "words"),
    [
        (Driver("580.95.05", (13, 0)), "13.0", True, "ok", "enough for CUDA 13.0"),
        (Driver("610.43.02", (13, 3)), "12.6", True, "ok", "enough for CUDA 12.6"),
        (Driver("535.183.01", (12, 2)), "12.8", True, "ok", "minor-version compatibility"),
        (Driver("570.133.07", (12, 8)), "13.0", False, "fail", "needs 580 or newer"),
        (Driver("470.182.03", (11, 4)), "12.6", False, "fail", "needs 525 or newer"),
        (Driver("525.60.13", None), "12.6", False, "ok", "enough"),
        # The cuda-compat package of data-centre images: the table says no, the card says yes.
        (Driver("535.183.01", (12, 2)), "13.0", True, "ok", "computes all the same"),
        (Driver("35.3.1", None), "12.6", True, "ok", "35.3.1"),
        (Driver("620.10", (13, 4)), "14.0", False, "fail", "torch wants CUDA 14.0"),
        (Driver("620.10", None), "14.0", False, "ok", "not compared"),
    ],
)
def test_driver_against_the_cuda_of_torch(driver: Driver, cuda: str, works: bool, status: str, words: str) -> None:
    finding = driver_finding(torch_with(cuda, available=works), Cards(driver, (RTX,)))
    assert finding.status == status, finding
    assert words in finding.found


def test_old_driver_is_mended_by_an_older_cuda_where_that_is_enough() -> None:
    new, old = Driver("570.133.07", (12, 8)), Driver("470.182.03", (11, 4))
    assert driver_finding(torch_with("13.0", available=False), Cards(new, (RTX,))).advice == CUDA_12_TORCH
    assert driver_finding(torch_with("13.0", available=False), Cards(old, (RTX,))).advice == NEW_DRIVER


TOOL = """#!/bin/sh
case "$1" in
  "") cat <<'END'
{header}
END
  ;;
  *compute_cap*) {capability} ;;
  --query-gpu=*) echo "0, Tesla T4, 15360, 2000" ;;
  --query-compute-apps=*) echo "4242, /usr/bin/python3, 13000" ;;
esac
"""


def with_tool(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Cards:
    """What `ask_driver` makes of an nvidia-smi that is this script."""
    tool = folder / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return ask_driver()


def test_driver_is_asked_by_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = TOOL.format(header=SMI_610, capability='echo "0, NVIDIA B200, 183359, 183000, 10.0"')
    cards = with_tool(tmp_path, monkeypatch, new)
    assert cards.driver == Driver("610.43.02", (13, 3))
    assert cards.cards == (Card(0, "NVIDIA B200", 183359 * MIB, 183000 * MIB, (10, 0)),)
    assert [tenant.pid for tenant in cards.tenants] == [4242]


def test_old_tool_is_asked_again_without_the_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    cards = with_tool(tmp_path, monkeypatch, TOOL.format(header=SMI_470_ON_580, capability=refusal))
    assert cards.cards == (Card(0, "Tesla T4", 15360 * MIB, 2000 * MIB, None),)
    told = torch_with("12.8", name="Tesla T4", capability=[7, 5])
    assert [one.status for one in findings(Probed(told), cards, {})] == ["ok", "ok", "warn", "warn"]


def test_tool_that_fails_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n"
    assert with_tool(tmp_path, monkeypatch, mismatch).trouble == (
        "Failed to initialize NVML: Driver/library version mismatch",
        smi_trouble("version mismatch")[1],
    )
    monkeypatch.setattr(doctor_cards, "_SMI_LIMIT_S", 1.0)
    hangs = with_tool(tmp_path, monkeypatch, "#!/bin/sh\nsleep 600\n")
    assert hangs.trouble is not None
    assert hangs.trouble[0] == "did not answer within 1 s"


def test_container_without_the_card_is_named() -> None:
    finding = driver_finding(None, Cards(Driver("570.133.07", None), smi=False, device_file=False))
    assert finding.status == "fail"
    assert finding.advice.startswith("docker run --gpus all")


@pytest.mark.parametrize(
    ("architectures", "capability", "how"),
    [
        (["sm_75", "sm_80", "sm_86", "sm_90"], (8, 9), "native"),  # an L4 runs code of 8.6
        (["sm_80"], (9, 0), None),
        (["sm_90"], (8, 9), None),
        (["sm_80", "compute_80"], (9, 0), "ptx"),
        (["sm_90a"], (9, 0), "native"),
        (["sm_90a", "compute_90a"], (10, 0), None),
        (["sm_100f"], (10, 3), "native"),
        (["sm_120"], (12, 1), "native"),
        (["sm_100", "sm_120"], (11, 0), None),
        (["sm_80", "gfx90a"], (7, 5), None),
        ([], (8, 9), None),
    ],
)
def test_code_of_the_wheel_for_a_card(architectures: list[str], capability: tuple[int, int], how: str | None) -> None:
    assert covered(architectures, capability) == how


def test_cards_are_judged_by_capability_and_wheel() -> None:
    good = card_finding(RTX, torch_with("12.8"))
    assert (good.status, good.found) == (
        "ok", "NVIDIA GeForce RTX 4090, 24.0 GiB, 23.5 GiB free, compute capability 8.9, bfloat16",
    )  # fmt: skip
    assert card_finding(T4, torch_with("12.8")).status == "warn"
    too_new = Card(0, "NVIDIA X", GIB, GIB, (13, 0))
    assert card_finding(too_new, torch_with("12.8")).status == "fail"
    assert card_finding(too_new, None).status == "ok"  # without torch there is no wheel to hold it against


def test_card_that_torch_cannot_use_stops_a_run() -> None:
    broken = torch_with("12.8", error="CUDA error: no kernel image is available for execution on the device")
    found = findings(Probed(broken), Cards(Driver("570.133.07", (12, 8)), (RTX,)), {})
    assert [one.status for one in found] == ["ok", "ok", "ok", "fail", "ok"]
    assert "no kernel image" in found[3].found


@pytest.mark.parametrize(
    ("torch", "environment", "status", "words", "mends"),
    [
        (torch_with("12.8"), {}, "ok", "sees 1 card", ""),
        (torch_with(None, available=False), {}, "fail", "stand idle", "pip install --force-reinstall torch"),
        (
            torch_with("12.8", available=False), {"CUDA_VISIBLE_DEVICES": ""}, "fail", "hides every card",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        (
            {**torch_with("13.0", available=False), "said": "The NVIDIA driver on your system is too old"}, {}, "fail",
            "too old", "sudo apt-get install nvidia-driver",
        ),
    ],
)  # fmt: skip
def test_torch_against_the_card_that_is_there(
    torch: dict[str, Any], environment: dict[str, str], status: str, words: str, mends: str
) -> None:
    finding = torch_finding(Probed(torch), Cards(Driver("570.133.07", (12, 8)), (RTX,)), environment)
    assert (finding.status, words in finding.found) == (status, True), finding
    assert finding.advice.startswith(mends)


def test_cpu_build_is_right_where_there_is_no_card() -> None:
    nothing = Cards(Driver(None, None), smi=False)
    found = findings(Probed(torch_with(None, available=False)), nothing, {})
    assert [(one.name, one.status) for one in found] == [("torch", "ok"), ("nvidia driver", "ok")]


def test_others_on_the_card() -> None:
    tenant = Tenant(4242, "/usr/bin/python3", None)
    full = Card(0, "NVIDIA L4", 23034 * MIB, 3000 * MIB, (8, 9))
    finding = tenants_finding(Cards(Driver("570.133.07", None), (full,), (tenant,)))
    assert (finding.status, finding.found) == ("warn", "19.6 GiB taken by python3 (4242)")
    assert "cannot be seen" in tenants_finding(Cards(Driver("570.133.07", None), (full,))).found
    assert tenants_finding(Cards(Driver("570.133.07", None), (RTX,), (tenant,))).status == "ok"


def test_what_each_of_many_cards_holds_by_itself_is_no_tenant() -> None:
    """Eight cards of a server that each hold 300 MiB are free, however much that is together."""
    cards = tuple(Card(index, "NVIDIA H100", 81559 * MIB, 81259 * MIB, (9, 0)) for index in range(8))
    assert tenants_finding(Cards(Driver("570.133.07", None), cards)).status == "ok"
    one = (*cards[:7], Card(7, "NVIDIA H100", 81559 * MIB, 60000 * MIB, (9, 0)))
    assert tenants_finding(Cards(Driver("570.133.07", None), one)).status == "warn"
