"""A run on a RunPod pod that removes itself, kept on a network volume. Python's standard library alone.

Start:    RECIPE=qwen3-4b-instruct-qlora-24gb MAX_HOURS=8 MAX_COST=6 PRICE=0.69 VOLUME=network-volume-id \
            SSD_LITE_PACKAGE='ssd-lite[unsloth,gguf,data] @ git+https://...' python recipes/cloud/runpod.py up
          (RUNPOD_API_KEY in the environment; it is never printed)
Forget:   the pod removes itself when the run has ended, failed or was stopped, and `up` stays and removes it when it is
          still there an hour and a half after MAX_HOURS. Both may fail: look at the console. The volume costs storage.
Checked:  every request against a stand-in of the API on this machine (tests/test_cloud_runpod.py), with the fields of
          RunPod's REST documentation (POST, GET and DELETE /v1/pods). Not run on the provider (no account).

    runpod.py up [--detach]    rent, start, watch          runpod.py watch POD    runpod.py remove POD

Of the environment: all settings of start.sh; GPU, a RunPod name (default NVIDIA GeForce RTX 4090); IMAGE, with curl and
a C++ compiler; DISK_GB (default 120, see `ssd-lite plan`); CLOUD (SECURE or COMMUNITY); SPOT=1; HF_SECRET, the name of
a RunPod secret that holds your Hugging Face token. Started again with the same RECIPE and VOLUME, the run goes on.
"""

import argparse
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

API = os.environ.get("RUNPOD_API", "https://rest.runpod.io/v1")
WANTED = ("RECIPE", "MAX_HOURS", "MAX_COST", "PRICE", "VOLUME")  # and SSD_LITE_PACKAGE or IMAGE, which brings it along
PASSED_ON = (*WANTED[:4], "SETTINGS", "THEN", "KEEP_SECONDS", "SSD_LITE_PACKAGE", "GRACE_SECONDS", "RUNPOD_API")
# The image in which `hf jobs uv run` works: Debian, Python 3.12, uv, curl and a C++ compiler.
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
MOUNT = "/workspace"
LATE_HOURS = 1.5  # after MAX_HOURS the pod removes itself; this much later it gets removed


class ApiError(Exception):
    """RunPod said no; `status` is the HTTP status."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"RunPod answers {status}: {words}")
        self.status = status


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One request; the object of the answer, None where it is empty. Raises ApiError, or OSError without an answer."""
    request = urllib.request.Request(f"{API}{path}", method=method)
    request.add_header("Authorization", f"Bearer {os.environ['RUNPOD_API_KEY']}")
    data = None
    if body is not None:
        request.add_header("Content-Type", "application/json")
        data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            text = answer.read()
        said = json.loads(text) if text.strip() else None
        if said is not None and not isinstance(said, dict):
            raise ValueError("no object")
        return said
    except urllib.error.HTTPError as error:
        raise ApiError(error.code, error.read(2000).decode(errors="replace").strip()) from None
    except (http.client.HTTPException, ValueError) as error:
        # An answer cut short, or a proxy's page instead of the API's JSON: as little to go by as no answer.
        raise OSError(f"{method} {path}: no answer that can be read ({type(error).__name__}: {error})") from None


def pod(setting: dict[str, str]) -> dict[str, Any]:
    """The body of POST /pods: the card, the volume, and the two scripts as the container's command."""
    here = Path(__file__).parent
    scripts = [(here / name).read_text(encoding="utf-8") for name in ("runpod_pod.sh", "start.sh")]
    environment = {name: setting[name] for name in PASSED_ON if setting.get(name)} | {"KEEP": MOUNT}
    if setting.get("HF_SECRET"):
        environment["HF_TOKEN"] = f"{{{{ RUNPOD_SECRET_{setting['HF_SECRET']} }}}}"
    return {
        "name": f"ssd-lite-{setting['RECIPE']}",
        "imageName": setting.get("IMAGE", IMAGE),
        "gpuTypeIds": [setting.get("GPU", "NVIDIA GeForce RTX 4090")],
        "gpuCount": 1,
        "cloudType": setting.get("CLOUD", "SECURE"),
        "interruptible": setting.get("SPOT") == "1",
        "containerDiskInGb": int(above_zero(setting, "DISK_GB", "120")),
        "networkVolumeId": setting["VOLUME"],
        "volumeMountPath": MOUNT,
        "dockerEntrypoint": ["bash"],
        "dockerStartCmd": ["-c", scripts[0], "runpod_pod.sh", scripts[1]],
        "env": environment,
    }


def above_zero(setting: dict[str, str], name: str, default: str = "") -> float:
    """A setting that must be a number above 0, before anything is rented. Exits with its name otherwise."""
    text = setting.get(name) or default
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        sys.exit(f"{name}={text} is no number above 0.")
    return number


def up(detach: bool) -> None:
    """Rent the pod; then watch it, unless `detach`."""
    missing = [name for name in WANTED if not os.environ.get(name)]
    if not os.environ.get("SSD_LITE_PACKAGE") and not os.environ.get("IMAGE"):
        missing.append("SSD_LITE_PACKAGE")
    if missing:
        sys.exit(f"wanted in the environment: {' '.join(missing)}")
    # Watching needs the last one here; the others are wanted on the pod.
    for number in ("MAX_HOURS", "MAX_COST", "PRICE", "KEEP_SECONDS", "GRACE_SECONDS", "POLL_SECONDS"):
        above_zero(dict(os.environ), number, "1")
    made = ask("POST", "/pods", pod(dict(os.environ)))
    name = (made or {}).get("id")
    if not name:
        raise OSError(f"the answer names no pod: {made}")
    print(f"pod {name} is rented ({made.get('costPerHr', '?')} an hour); it removes itself at the end of the run.")
    print(f"By hand: python {sys.argv[0]} remove {name}", flush=True)
    if not detach:
        watch(name)


def watch(name: str) -> None:
    """Wait until the pod is gone; an hour and a half after MAX_HOURS remove it. A lost network is waited out."""
    setting = dict(os.environ)
    deadline = time.monotonic() + (above_zero(setting, "MAX_HOURS", "24") + LATE_HOURS) * 3600
    poll_s = above_zero(setting, "POLL_SECONDS", "60")
    while True:
        try:
            if time.monotonic() >= deadline:
                print(f"pod {name} is over its time and gets removed.", flush=True)
                ask("DELETE", f"/pods/{name}")
            state = ask("GET", f"/pods/{name}")
            print(f"{time.strftime('%H:%M')} pod {name}: {state.get('desiredStatus', '?')}", flush=True)
        except ApiError as error:
            if error.status == 404:
                print(f"pod {name} is gone.")
                return
            print(f"{error}; asking again", flush=True)
        except OSError as error:
            print(f"no answer ({error}); asking again", flush=True)
        time.sleep(poll_s)


def remove(name: str) -> None:
    """Remove a pod; one that is gone already is no error."""
    try:
        ask("DELETE", f"/pods/{name}")
    except (ApiError, OSError) as error:
        if getattr(error, "status", None) != 404:
            sys.exit(f"{error}\npod {name} is NOT removed and costs money: remove it in the console.")
    print(f"pod {name} is removed.")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="rent a pod, start the run").add_argument("--detach", action="store_true")
    for command in ("watch", "remove"):
        commands.add_parser(command).add_argument("pod")
    chosen = parser.parse_args()
    if not os.environ.get("RUNPOD_API_KEY"):
        sys.exit("RUNPOD_API_KEY is wanted in the environment (console: Settings, API keys).")
    try:
        if chosen.command == "up":
            up(chosen.detach)
        elif chosen.command == "watch":
            watch(chosen.pod)
        else:
            remove(chosen.pod)
    except (ApiError, OSError) as error:
        sys.exit(f"{error}\nNothing says that a pod was rented, nor that none was: look at the console.")
    except KeyboardInterrupt:
        sys.exit("No longer watching. The pod goes on, and removes itself at the end of the run.")


if __name__ == "__main__":
    main()
