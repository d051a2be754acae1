"""ssh.sh and Modal's part: a run over there that outlives its watcher, is fetched, and ends the machine afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cloud_machine import CLOUD, RSYNC, SSH, Machine, alive, ended, machine, modal_app, until

SCRIPT = CLOUD / "ssh.sh"
pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path: Path) -> Machine:
    """The renter's machine, and beside it the folder that stands for the rented one."""
    there = tmp_path / "there"
    there.mkdir()
    made = machine(tmp_path, REMOTE=str(there), RESULTS=str(tmp_path / "results"), POLL_SECONDS="0.2")
    made.write("ssh", SSH)
    made.write("rsync", RSYNC)
    made.write("shutdown", '#!/bin/sh\necho "$@" >>"$REMOTE/shutdown"\n')
    return made


def there(desk: Machine) -> Path:
    return desk.home / "there" / "ssd-lite-cloud" / "quickstart"


def test_up_watched_fetched_and_shut_down_once(desk: Machine) -> None:
    code, out = desk.run("bash", SCRIPT, "user@host", "--then", "shutdown -h now", HF_TOKEN="a 'secret'")
    assert code == 0, out
    assert desk.words[:4] == ["run", "quickstart", "--out", "run"]
    # The stand-in for ssd-lite does not run --then: here its words are run, as `ssd-lite run` would.
    then = desk.words[desk.words.index("--then") + 1]
    shell = {**desk.environment, "HOME": str(desk.home / "there")}
    subprocess.run(then, shell=True, env=shell, check=True, timeout=5)
    until(lambda: (desk.home / "there" / "shutdown").exists())
    assert (desk.home / "there" / "shutdown").read_text() == "-h now\n"
    results = desk.home / "results"
    assert (results / "samples.jsonl").read_text() == "line\n"
    assert (results / "merged" / "weights").is_file()
    assert (results / "cloud-log.txt").is_file()
    assert not (there(desk) / "settings").exists()
    assert "secret" not in out + (results / "cloud-log.txt").read_text()
    assert (there(desk) / "source" / "ssd_lite" / "cli.py").is_file()
    assert "SSD_LITE_PACKAGE='./source[unsloth,gguf,data]'" in SCRIPT.read_text()
    assert not list((there(desk) / "source").rglob("__pycache__"))


def test_the_machine_waits_for_its_results_but_not_for_ever(desk: Machine) -> None:
    assert desk.run("bash", SCRIPT, "host", "--then", "shutdown -h now", GRACE_SECONDS="2")[0] == 0
    (there(desk) / "fetched").unlink()
    then = desk.words[desk.words.index("--then") + 1]
    shell = {**desk.environment, "HOME": str(desk.home / "there")}
    subprocess.run(then, shell=True, env=shell, check=True, timeout=1.5)
    assert not (desk.home / "there" / "shutdown").exists()
    until(lambda: (desk.home / "there" / "shutdown").exists())


def test_settings_lie_where_only_the_user_reads_them(desk: Machine) -> None:
    desk.write("ssd-lite", '#!/bin/sh\nprintf "%s" "$HF_TOKEN" >"$REMOTE/token"; pwd >>"$REMOTE/token"\n')
    desk.write("stat-settings", "#!/bin/sh\n")
    seen = desk.home / "there" / "modes"
    desk.write(
        "bash", f'#!/bin/sh\nls -l "$HOME"/ssd-lite-cloud/*/settings >>{seen} 2>/dev/null\nexec /bin/bash "$@"\n'
    )
    assert desk.run("/bin/bash", SCRIPT, "host", HF_TOKEN="x'$y")[0] == 0
    assert (desk.home / "there" / "token").read_text().startswith("x'$y")
    assert seen.read_text().split()[0].startswith("-rw-------")
    assert stat.S_IMODE(there(desk).stat().st_mode) == 0o700


def test_a_run_outlives_its_watcher_and_a_lost_connection(desk: Machine) -> None:
    first = desk.start("bash", SCRIPT, "host", FAKE="wait")
    until((there(desk) / "run" / "samples.jsonl").exists)
    pid = int((there(desk) / "pid").read_text())
    first.send_signal(signal.SIGINT)
    first.kill()
    ended(first)
    assert alive(pid)
    said, unplugged = desk.home / "said", desk.home / "there" / "unplugged"
    with said.open("w") as out:
        again = subprocess.Popen(
            ["bash", str(SCRIPT), "host"], env={**desk.environment, "FAKE": "wait"}, stdout=out, stderr=out
        )
    until(lambda: "a run goes on there" in said.read_text())
    unplugged.touch()
    until(lambda: said.read_text().count("no connection") >= 2)
    unplugged.unlink()
    os.killpg(pid, signal.SIGTERM)
    assert again.wait(60) == 75, said.read_text()
    assert (desk.home / "results" / "samples.jsonl").read_text() == "line\nstopped\n"


def test_a_run_goes_on_on_another_machine(desk: Machine) -> None:
    assert desk.run("bash", SCRIPT, "host", FAKE="1")[0] == 1
    (desk.home / "there").rename(desk.home / "gone")
    (desk.home / "there").mkdir()
    code, out = desk.run("bash", SCRIPT, "host")
    assert code == 0, out
    assert "going on with the run in" in out
    assert desk.resumed
    assert (desk.home / "results" / "samples.jsonl").read_text() == "line\nline\n"
    assert not (there(desk) / "run" / "cloud-log.txt").exists()


def test_checkpoints_come_back_where_the_run_is_not_done(desk: Machine) -> None:
    checkpoint = there(desk) / "run" / "checkpoints" / "step-1"
    for fake, fetched in (("1", True), ("0", False)):
        checkpoint.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(desk.home / "results", ignore_errors=True)
        assert desk.run("bash", SCRIPT, "host", FAKE=fake)[0] == int(fake)
        assert (desk.home / "results" / "checkpoints" / "step-1").is_dir() == fetched


def test_an_ended_run_is_fetched_before_anything_new_costs_money(desk: Machine) -> None:
    assert desk.run("bash", SCRIPT, "host", FAKE="75")[0] == 0
    (there(desk) / "fetched").unlink()
    (desk.home / "words").unlink()
    code, out = desk.run("bash", SCRIPT, "host")
    assert code == 0
    assert "has ended there" in out
    assert not desk.words
    assert desk.run("bash", SCRIPT, "host")[0] == 0
    assert desk.resumed


def test_a_recipe_of_the_users_own_travels(desk: Machine) -> None:
    (desk.home / "mine.yaml").write_text("name: mine\n")
    assert desk.run("bash", SCRIPT, "host", RECIPE=str(desk.home / "mine.yaml"))[0] == 0
    assert desk.words[1] == "mine.yaml"
    assert (desk.home / "there" / "ssd-lite-cloud" / "mine" / "mine.yaml").read_text() == "name: mine\n"


def test_a_machine_that_cannot_be_reached(desk: Machine) -> None:
    (desk.home / "there" / "unplugged").touch()
    code, out = desk.run("bash", SCRIPT, "host")
    assert code == 1
    assert "cannot be reached" in out


# -- Modal -----------------------------------------------------------------------------------------------------------

WORK = """
import sys
sys.path.insert(0, {tests!r})
sys.executable = {python!r}
from cloud_machine import modal_app
app = modal_app()
app.COMMIT_SECONDS = 0.3
print("code", app.work({{"FAKE": {fake!r}}}, {keep!r}, lambda: print("commit", flush=True)))
"""


def work(desk: Machine, fake: str) -> subprocess.Popen[str]:
    """`work` of modal_app.py in a process of its own, with a Python whose neighbour is the stand-in for ssd-lite."""
    desk.write("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (desk.home / "keep").mkdir()
    words = {"tests": str(Path(__file__).parent), "python": str(desk.home / "bin" / "python"), "fake": fake}
    return desk.start(sys.executable, "-c", WORK.format(**words, keep=str(desk.home / "keep")))


@pytest.mark.parametrize(("fake", "code"), [("0", 0), ("75", 0), ("1", 1), ("2", 2)])
def test_modal_commits_at_the_end(fake: str, code: int, desk: Machine) -> None:
    ended_with, out = ended(work(desk, fake))
    assert ended_with == 0, out
    assert f"code {code}" in out
    assert "commit" in out
    assert list((desk.home / "keep").glob("quickstart.*.tar"))


def test_a_preemption_by_modal_saves_commits_and_goes_on_to_modal(desk: Machine) -> None:
    process = work(desk, "wait")
    until((desk.home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").exists)
    process.send_signal(signal.SIGINT)
    code, out = ended(process)
    assert code != 0
    assert "KeyboardInterrupt" in out
    assert out.rindex("commit") > out.rindex("saves its work")
    assert (desk.home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").read_text() == "line\nstopped\n"
    assert len(list((desk.home / "keep").glob("quickstart.*.tar"))) == 1


def test_modal_tries_again_what_broke_off_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    app = modal_app()
    run = getattr(app.run, "local", app.run)  # the real `modal` wraps the function
    for code, raises in ((0, False), (2, False), (1, True), (75, True), (137, True)):
        monkeypatch.setattr(app, "work", lambda settings, folder, commit, code=code: code)
        if raises:
            with pytest.raises(RuntimeError, match=f"exit code {code}"):
                run({})
        else:
            assert run({}) == code


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["--thn", "shutdown -h now"], {}, "--thn shutdown -h now is not known"),
        (["shutdown -h now"], {}, "usage: ssh.sh user@host"),
        (["--then", "sudo", "shutdown"], {}, "usage: ssh.sh user@host"),
        ([], {"MAX_COST": "0"}, "0 is no number above 0"),
        (["--then", "true"], {"PRICE": "0,69"}, "0,69 is no number above 0"),
    ],
)
def test_a_slip_of_the_pen_starts_nothing(words: list[str], settings: dict[str, str], said: str, desk: Machine) -> None:
    """A misspelt --then would leave a machine on that costs money."""
    code, out = desk.run("bash", SCRIPT, "user@host", *words, **settings)
    assert code == 2
    assert said in out
    assert not list((desk.home / "there").iterdir())
