"""A run on Modal, kept in a Volume, gone on with after a preemption.

Start:    RECIPE=qwen3-4b-instruct-qlora-24gb MAX_HOURS=8 MAX_COST=8 PRICE=0.80 GPU=L4 \
            modal run --detach recipes/cloud/modal_app.py
Forget:   a function that has ended costs nothing; the Volume costs storage. Without --detach the run ends when this
          terminal goes. The provider's own end is MAX_HOURS and one hour, for each of at most three starts.
Checked:  modal 1.6.4: import without a warning, the function's image, card, volume, time-out and retries; `work` on a
          CPU. Not run on the provider (no account).

The checkout that this file is in is installed, or what SSD_LITE_PACKAGE names: 'ssd-lite[unsloth,gguf,data] @
git+https://...'. The secret `huggingface` must hold HF_TOKEN: modal secret create huggingface HF_TOKEN=...
Modal's containers are gVisor, which has no Landlock. Where ssd-lite then finds no sandbox to grade programs in, it says
so at once; a container that is thrown away may do without: SETTINGS=evaluate.sandbox=none
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import modal

NAMES = ("RECIPE", "MAX_HOURS", "MAX_COST", "PRICE", "SETTINGS", "THEN", "KEEP_SECONDS")
EXTRAS = "[unsloth,gguf,data]"
KEEP = "/keep"
COMMIT_SECONDS = 60.0
SAVE_SECONDS = 25.0  # Modal gives a preempted container 30
DAY = 24 * 3600  # the longest time-out that Modal takes


def image() -> modal.Image:
    """Debian with a C++ compiler (llama.cpp and Triton want one), bubblewrap, and ssd-lite."""
    base = modal.Image.debian_slim(python_version="3.12").apt_install("bubblewrap", "g++", "procps")
    root = Path(__file__).resolve().parents[2] if modal.is_local() else Path("/")
    named = os.environ.get("SSD_LITE_PACKAGE")
    if named:
        return base.uv_pip_install(named)
    if not (root / "ssd_lite").is_dir():
        if modal.is_local():
            sys.exit("SSD_LITE_PACKAGE is wanted: this file is in no checkout")
        return base  # on Modal's machine, where the image is made long since
    for name in ("ssd_lite", "recipes"):
        base = base.add_local_dir(root / name, f"/source/{name}", copy=True, ignore=["**/__pycache__"])
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        base = base.add_local_file(root / name, f"/source/{name}", copy=True)
    return base.uv_pip_install(f"/source{EXTRAS}")


def time_out(max_hours: str) -> int:
    """Seconds after which Modal ends the function, should the run not have ended itself."""
    return min(DAY, round((above_zero("MAX_HOURS", max_hours) + 1) * 3600))


def above_zero(name: str, text: str) -> float:
    """A setting that must be a number above 0, before a card costs money. Exits with its name otherwise."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        sys.exit(f"{name}={text} is no number above 0.")
    return number


app = modal.App("ssd-lite")
keep = modal.Volume.from_name("ssd-lite-keep", create_if_missing=True)


def work(settings: dict[str, str], folder: str, commit) -> int:  # type: ignore[no-untyped-def]
    """Run start.sh with these settings and `folder` as KEEP; `commit` is called now and then and at the end.

    A KeyboardInterrupt (Modal's notice of a preemption) is passed on, the run saves its work, and the interrupt goes on
    to Modal, which starts the function again elsewhere. Returns the exit code of start.sh.
    """
    command = [sys.executable, "-m", "ssd_lite", "recipes", "cloud", "start.sh"]
    start = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **settings, "KEEP": folder, "PATH": path}
    # A group of its own: a SIGINT for all would reach the run twice, and the second cuts it short.
    child = subprocess.Popen(["bash", "-c", start, "start.sh"], env=environment, start_new_session=True)
    try:
        while True:
            try:
                return child.wait(COMMIT_SECONDS)
            except subprocess.TimeoutExpired:
                commit()
    except BaseException:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
        raise
    finally:
        commit()


@app.function(
    image=image(),
    gpu=os.environ.get("GPU", "L4").split(","),
    volumes={KEEP: keep},
    secrets=[modal.Secret.from_name("huggingface", required_keys=["HF_TOKEN"])],
    timeout=time_out(os.environ.get("MAX_HOURS", "23")),
    retries=modal.Retries(max_retries=2, initial_delay=0.0),
    single_use_containers=True,
)
def run(settings: dict[str, str]) -> int:
    """The run on Modal's machine; returns 0 at the end or at a limit, 2 where the user must mend something.

    Where it broke off otherwise it raises, so that Modal starts it again and it goes on.
    """
    code = work(settings, KEEP, keep.commit)
    if code not in (0, 2):
        raise RuntimeError(f"ssd-lite ended with exit code {code}; what was done is in the volume ssd-lite-keep")
    return code


@app.local_entrypoint()
def main() -> None:
    """Send the settings of this shell to the function."""
    missing = [name for name in NAMES[:4] if not os.environ.get(name)]
    if missing:
        sys.exit(f"wanted in the environment: {' '.join(missing)}")
    for name in ("MAX_COST", "PRICE", "KEEP_SECONDS"):  # MAX_HOURS was looked at when this file was read
        above_zero(name, os.environ.get(name) or "1")
    sys.exit(run.remote({name: os.environ[name] for name in NAMES if name in os.environ}))
