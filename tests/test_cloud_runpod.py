"""RunPod: what the launcher asks of the API, and a pod that removes itself at the end, on a failure and on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_machine import CLOUD, Machine, RunPod, alive, ended, machine, runpod_api, until

LAUNCHER = CLOUD / "runpod.py"
pytestmark = pytest.mark.slow
KEY = "user-key"


@pytest.fixture
def api() -> Iterator[RunPod]:
    with runpod_api() as state:
        yield state


@pytest.fixture
def box(tmp_path: Path, api: RunPod) -> Machine:
    """The inside of a pod."""
    (tmp_path / "keep").mkdir()
    pod = {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "pod-key", "RUNPOD_API": api.url, "KEEP": str(tmp_path / "keep")}
    return machine(tmp_path, REMOVE_PAUSE="0.1", REMOVE_TRIES="3", **pod)


def inside(box: Machine, **settings: str) -> subprocess.Popen[str]:
    """The command that the launcher gives to the container."""
    scripts = [(CLOUD / name).read_text() for name in ("runpod_pod.sh", "start.sh")]
    return box.start("bash", "-c", scripts[0], "runpod_pod.sh", scripts[1], **settings)


# -- in the pod ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fake", "code"), [("0", 0), ("1", 1), ("75", 0), ("137", 137)])
def test_the_pod_is_removed_however_the_run_ends(fake: str, code: int, box: Machine, api: RunPod) -> None:
    ended_with, out = ended(inside(box, FAKE=fake))
    assert ended_with == code, out
    assert api.removed
    assert api.asked == [("DELETE", "/pods/pod1", "pod-key")]
    assert "pod-key" not in out
    assert list((box.home / "keep").glob("*.tar"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_pod_is_removed_after_a_signal_once_the_work_is_saved(
    number: signal.Signals, box: Machine, api: RunPod
) -> None:
    process = inside(box, FAKE="wait")
    until((box.home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").exists)
    process.send_signal(number)
    code, out = ended(process)
    assert code == 75, out
    assert api.removed
    assert (box.home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").read_text() == "line\nstopped\n"


def test_the_pod_is_removed_where_nothing_can_be_installed(box: Machine, api: RunPod) -> None:
    (box.home / "bin" / "ssd-lite").unlink()
    box.write("uv", "#!/bin/sh\nexit 1\n")
    assert ended(inside(box, SSD_LITE_PACKAGE="./x"))[0] == 1
    assert api.removed


def test_a_run_over_its_time_is_stopped_and_the_pod_removed(box: Machine, api: RunPod) -> None:
    code, out = ended(inside(box, FAKE="wait", MAX_HOURS="0.0002", GRACE_SECONDS="1"))
    assert code == 75, out
    assert "over its time" in out
    assert api.removed


def test_a_refusal_is_tried_again(box: Machine, api: RunPod) -> None:
    api.refusals = [500, 503]
    assert ended(inside(box))[0] == 0
    assert api.removed


def test_another_key_goes_first_and_the_pods_own_is_the_second(box: Machine, api: RunPod) -> None:
    assert ended(inside(box, RUNPOD_REMOVE_KEY="wrong"))[0] == 0
    assert [key for _, _, key in api.asked] == ["wrong", "pod-key"]


def test_without_a_key_that_may_runpodctl_is_asked(box: Machine, api: RunPod) -> None:
    api.keys.clear()
    box.write("runpodctl", '#!/bin/sh\necho "$@" >"$HOME/runpodctl"\n')
    assert ended(inside(box))[0] == 0
    assert (box.home / "runpodctl").read_text() == "remove pod pod1\n"


def test_a_pod_that_stays_is_said_loudly(box: Machine, api: RunPod) -> None:
    api.keys.clear()
    code, out = ended(inside(box))
    assert code == 0
    assert out.count("the pod pod1 is not removed and costs money") == 3


def test_the_key_is_in_no_process_arguments(box: Machine, api: RunPod) -> None:
    """The stand-in for curl writes down its arguments and what comes by stdin."""
    box.write("curl", '#!/bin/sh\necho "$@" >"$HOME/arguments"\ncat >"$HOME/stdin"\n')
    assert ended(inside(box))[0] == 0
    assert "pod-key" not in (box.home / "arguments").read_text()
    assert (box.home / "stdin").read_text() == 'header = "Authorization: Bearer pod-key"\n'


# -- the launcher ----------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, api: RunPod) -> Machine:
    """The renter's machine."""
    api.keys = {KEY}
    package = "ssd-lite[x] @ git+https://x"
    settings = {"RUNPOD_API": api.url, "RUNPOD_API_KEY": KEY, "VOLUME": "vol1", "SSD_LITE_PACKAGE": package}
    return machine(tmp_path, POLL_SECONDS="0.1", **settings)


def test_up_rents_with_the_documented_fields(desk: Machine, api: RunPod) -> None:
    settings = {"HF_SECRET": "hub", "SETTINGS": "train.max_steps=2", "GPU": "NVIDIA L4", "SPOT": "1"}
    code, out = desk.run(sys.executable, LAUNCHER, "up", "--detach", **settings)
    assert code == 0, out
    assert "pod pod1 is rented (0.74 an hour)" in out
    (body,) = api.bodies
    assert api.asked == [("POST", "/pods", KEY)]
    documented = {
        *("name", "imageName", "gpuTypeIds", "gpuCount", "cloudType", "interruptible", "containerDiskInGb"),
        *("networkVolumeId", "volumeMountPath", "dockerEntrypoint", "dockerStartCmd", "env"),
    }  # docs.runpod.io, POST /pods
    assert set(body) == documented
    assert (body["gpuTypeIds"], body["networkVolumeId"], body["interruptible"]) == (["NVIDIA L4"], "vol1", True)
    environment = body["env"]
    assert isinstance(environment, dict)
    assert environment["HF_TOKEN"] == "{{ RUNPOD_SECRET_hub }}"
    assert environment["KEEP"] == body["volumeMountPath"]
    assert {"RECIPE", "MAX_HOURS", "MAX_COST", "PRICE", "SETTINGS"} <= set(environment)
    assert KEY not in json.dumps(body) + out


def test_what_up_sends_runs_and_removes_the_pod(desk: Machine, api: RunPod) -> None:
    """The container's command and environment exactly as sent, with the pod's own variables beside."""
    assert desk.run(sys.executable, LAUNCHER, "up", "--detach")[0] == 0
    (body,) = api.bodies
    api.keys = {"pod-key"}
    (desk.home / "keep").mkdir()
    environment = {**body["env"], "KEEP": str(desk.home / "keep")}  # type: ignore[dict-item]
    own = {"RUNPOD_POD_ID": "pod1", "RUNPOD_API_KEY": "pod-key", "REMOVE_PAUSE": "0.1"}
    words = [*body["dockerEntrypoint"], *body["dockerStartCmd"]]  # type: ignore[misc]
    assert desk.run(*words, **environment, **own)[0] == 0
    assert desk.words[:2] == ["run", "quickstart"]
    assert api.removed


def test_up_watches_until_the_pod_is_gone(desk: Machine, api: RunPod) -> None:
    process = desk.start(sys.executable, LAUNCHER, "up")
    until(lambda: ("GET", "/pods/pod1", KEY) in api.asked)
    api.pods.clear()
    code, out = ended(process)
    assert (code, "pod pod1 is gone" in out) == (0, True)


def at_once(desk: Machine) -> Path:
    """The launcher without its patience beyond MAX_HOURS."""
    file = desk.home / "runpod.py"
    text = LAUNCHER.read_text()
    assert "LATE_HOURS = 1.5" in text
    file.write_text(text.replace("LATE_HOURS = 1.5", "LATE_HOURS = 0"))
    return file


def test_a_pod_over_its_time_is_removed_from_outside(desk: Machine, api: RunPod) -> None:
    code, out = desk.run(sys.executable, at_once(desk), "watch", "pod1", MAX_HOURS="0.00001")
    assert code == 0, out
    assert api.removed
    assert "over its time" in out


def test_leaving_off_watching_leaves_the_pod(desk: Machine, api: RunPod) -> None:
    process = desk.start(sys.executable, LAUNCHER, "up")
    until(lambda: ("GET", "/pods/pod1", KEY) in api.asked)
    os.kill(process.pid, signal.SIGINT)
    code, out = ended(process)
    assert (code, api.removed) == (1, False)
    assert "The pod goes on" in out
    assert not alive(process.pid)


def test_a_refusal_from_outside_is_tried_again(desk: Machine, api: RunPod) -> None:
    api.refusals = [500, 503]
    code, out = desk.run(sys.executable, at_once(desk), "watch", "pod1", MAX_HOURS="0.00001")
    assert (code, api.removed) == (0, True), out


def test_a_lost_network_does_not_end_the_watch(desk: Machine, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        nowhere = {**desk.environment, "RUNPOD_API": "http://127.0.0.1:9"}
        process = subprocess.Popen([sys.executable, str(LAUNCHER), "watch", "pod1"], env=nowhere, stdout=out)
        try:
            until(lambda: (tmp_path / "out").read_text().count("no answer") >= 3)
        finally:
            process.kill()
            process.wait()


def test_an_answer_that_cannot_be_read_does_not_end_the_watch(desk: Machine, api: RunPod) -> None:
    """A proxy's page, an answer cut short, a list: each is waited out, and the pod over its time still goes."""
    api.pages = ["<html>one moment</html>", '{"id": "po…', "[]"]
    code, out = desk.run(sys.executable, at_once(desk), "watch", "pod1", MAX_HOURS="0.00001")
    assert (code, api.removed) == (0, True), out
    assert out.count("no answer that can be read") == 3
    assert "Traceback" not in out


@pytest.mark.parametrize("page", ["<html>one moment</html>", "{}", ""])
def test_an_unreadable_answer_to_renting_says_where_to_look(page: str, desk: Machine, api: RunPod) -> None:
    api.pages = [page]
    code, out = desk.run(sys.executable, LAUNCHER, "up")
    assert code == 1
    assert "look at the console" in out
    assert "Traceback" not in out


def test_remove(desk: Machine, api: RunPod) -> None:
    assert desk.run(sys.executable, LAUNCHER, "remove", "pod1") == (0, "pod pod1 is removed.\n")
    assert desk.run(sys.executable, LAUNCHER, "remove", "pod1")[0] == 0
    code, out = desk.run(sys.executable, LAUNCHER, "remove", "pod1", RUNPOD_API_KEY="wrong")
    assert code == 1
    assert "NOT removed" in out
    assert "wrong" not in out


@pytest.mark.parametrize("name", ["MAX_HOURS", "MAX_COST", "PRICE", "DISK_GB", "POLL_SECONDS", "GRACE_SECONDS"])
@pytest.mark.parametrize("value", ["8h", "0", "nan"])
def test_nothing_is_rented_with_a_number_that_is_none(name: str, value: str, desk: Machine, api: RunPod) -> None:
    code, out = desk.run(sys.executable, LAUNCHER, "up", **{name: value})
    assert code == 1
    assert f"{name}={value} is no number above 0" in out
    assert api.asked == []


NEEDED = ["RECIPE", "MAX_HOURS", "MAX_COST", "PRICE", "VOLUME", "RUNPOD_API_KEY", "SSD_LITE_PACKAGE"]


@pytest.mark.parametrize("name", NEEDED)
def test_nothing_is_rented_without_its_limits(name: str, desk: Machine, api: RunPod) -> None:
    code, out = desk.run(sys.executable, LAUNCHER, "up", **{name: ""})
    assert (code, api.asked) == (1, [])
    assert name in out
