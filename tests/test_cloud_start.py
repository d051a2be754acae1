"""start.sh: words to ssd-lite, exit codes, signals, archives of the run and what is taken back from them."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest
from cloud_machine import CLOUD, WANTED, Machine, ended, machine, until

START = CLOUD / "start.sh"
pytestmark = pytest.mark.slow


@pytest.fixture
def box(tmp_path: Path) -> Machine:
    (tmp_path / "keep").mkdir()
    return machine(tmp_path)


def archives(box: Machine) -> list[Path]:
    return sorted((box.home / "keep").glob("*.tar"))


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as file:
        return file.getnames()


def test_words(box: Machine) -> None:
    code, out = box.run("bash", START, SETTINGS="train.max_steps=2 evaluate.k=[1]", THEN="echo 'a b'")
    assert code == 0, out
    folder = str(box.home / "ssd-lite-runs" / "quickstart")
    limits = ["--max-hours", "0.500000", "--max-cost", "3.000000", "--price", "0.69"]
    sets = ["--set", "train.max_steps=2", "--set", "evaluate.k=[1]"]
    assert box.words == ["run", "quickstart", "--out", folder, *limits, *sets, "--then", "echo 'a b'"]


def test_the_limits_are_those_of_the_whole_run(box: Machine) -> None:
    """The stand-in leaves a heartbeat of 720 s: 0.2 hours, 0.138 of money."""
    keep = str(box.home / "keep")
    assert box.run("bash", START, FAKE="1", KEEP=keep)[0] == 1
    assert box.run("bash", START, FAKE="1", KEEP=keep, RUN_DIR=str(box.home / "next"))[0] == 1
    assert box.words[4:8] == ["--max-hours", "0.300000", "--max-cost", "2.862000"]


@pytest.mark.parametrize("used_up", [{"MAX_HOURS": "0.2"}, {"MAX_COST": "0.1"}])
def test_a_limit_that_is_used_up_starts_nothing(used_up: dict[str, str], box: Machine) -> None:
    assert box.run("bash", START)[0] == 0
    (box.home / "words").unlink()
    code, out = box.run("bash", START, THEN=f"echo once >>{box.home}/then", **used_up)
    assert (code, box.words) == (0, [])
    assert "a limit is reached" in out
    assert (box.home / "then").read_text() == "once\n"


@pytest.mark.parametrize("name", ["MAX_HOURS", "MAX_COST", "PRICE", "KEEP_SECONDS"])
@pytest.mark.parametrize("value", ["8h", "0", "0,69", "-1", "nan"])
def test_what_is_no_number_is_refused_and_then_comes(name: str, value: str, box: Machine) -> None:
    """A machine that was rented with a slip of the pen must end too."""
    code, out = box.run("bash", START, THEN='echo once $SSD_LITE_EXIT_CODE >>"$HOME/then"', **{name: value})
    assert (code, box.words) == (2, [])
    assert f"{value} is no number above 0" in out
    assert (box.home / "then").read_text() == "once 2\n"


def test_without_settings_and_then_there_are_no_words_for_them(box: Machine) -> None:
    assert box.run("bash", START)[0] == 0
    assert not {"--set", "--then"} & set(box.words)


@pytest.mark.parametrize(("name", "value"), [*((name, "") for name in WANTED), ("RECIPE", "-x")])
def test_nothing_starts_without_its_limits(name: str, value: str, box: Machine) -> None:
    """Nor does a machine go on that was rented without them."""
    code, out = box.run("bash", START, THEN='echo once $SSD_LITE_EXIT_CODE >>"$HOME/then"', **{name: value})
    assert (code, box.words) == (2, [])
    assert f"{name} is wanted" in out
    assert (box.home / "then").read_text() == "once 2\n"


@pytest.mark.parametrize(("fake", "code"), [("0", 0), ("1", 1), ("2", 2), ("75", 0), ("137", 137)])
def test_exit_codes_and_the_last_archive(fake: str, code: int, box: Machine) -> None:
    """75 without a signal is a limit: a provider that starts the job again on 75 would never stop paying."""
    ended_with, out = box.run("bash", START, FAKE=fake, KEEP=str(box.home / "keep"))
    assert ended_with == code, out
    assert ("a limit is reached" in out) == (fake == "75")
    (archive,) = archives(box)
    assert {"./manifest.json", "./samples.jsonl", "./merged/weights", "./gguf/file"} <= set(names(archive))
    assert names(archive)[0] == "./manifest.json"
    assert names(archive).count("./manifest.json") == 1
    assert "./.lock" not in names(archive)
    assert (box.home / "keep" / "quickstart.html").exists() == (fake == "0")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, "75"), (signal.SIGINT, "75"), (signal.SIGTERM, "143")])
def test_a_stop_is_passed_on_and_its_work_is_kept(number: signal.Signals, code: str, box: Machine) -> None:
    process = box.start("bash", START, FAKE="wait", FAKE_STOPPED=code, KEEP=str(box.home / "keep"))
    until((box.home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").exists)
    process.send_signal(number)
    ended_with, out = ended(process)
    assert ended_with == 75, out
    with tarfile.open(archives(box)[-1]) as file:
        kept = file.extractfile("./samples.jsonl")
        assert kept is not None
        assert kept.read() == b"line\nstopped\n"


def test_a_stop_for_the_whole_group_keeps_the_exit_code(box: Machine) -> None:
    """A machine that shuts down signals all processes at once: bash then loses codes that it waits for plainly."""
    codes = []
    for number in range(8):
        home = box.home / str(number)
        home.mkdir()
        settings = {**box.environment, "HOME": str(home), "FAKE": "wait"}
        process = subprocess.Popen(["bash", START], env=settings, start_new_session=True, stderr=subprocess.DEVNULL)
        until((home / "ssd-lite-runs" / "quickstart" / "samples.jsonl").exists)
        os.killpg(process.pid, signal.SIGTERM)
        codes.append(process.wait(10))
    assert codes == [75] * 8


def test_archives_on_the_way_are_small_and_few(box: Machine) -> None:
    process = box.start("bash", START, FAKE="wait", KEEP=str(box.home / "keep"), KEEP_SECONDS="1")
    until(lambda: bool(archives(box)) and archives(box)[-1].name.endswith("-0003.tar"))
    process.terminate()
    assert ended(process)[0] == 75
    two = archives(box)  # of four or more
    assert len(two) == 2
    for archive in two:  # the last one too: after a notice there is no time for weights
        assert "./samples.jsonl" in names(archive)
        assert not {"./merged", "./gguf"} & set(names(archive))


@pytest.mark.parametrize("cut", [0, 700, 1500, 2048])
def test_a_new_machine_goes_on_from_the_newest_whole_archive(cut: int, box: Machine) -> None:
    keep = str(box.home / "keep")
    assert box.run("bash", START, FAKE="75", KEEP=keep)[0] == 0
    whole = archives(box)[0]
    torn = whole.with_name("quickstart.99990101T000000-0001.tar")
    torn.write_bytes(whole.read_bytes()[:cut])
    (box.home / "keep" / "other.99990101T000000-0001.tar").write_bytes(whole.read_bytes())
    new = box.home / "new"
    code, out = box.run("bash", START, KEEP=keep, RUN_DIR=str(new))
    assert code == 0, out
    assert f"{torn} is not whole" in out
    assert f"goes on from {whole}" in out
    assert box.resumed
    assert (new / "samples.jsonl").read_text() == "line\nline\n"
    assert not (new / ".last-entry").exists()


def test_a_run_that_is_there_is_not_replaced_by_an_archive(box: Machine) -> None:
    keep, folder = str(box.home / "keep"), box.home / "ssd-lite-runs" / "quickstart"
    assert box.run("bash", START, KEEP=keep)[0] == 0
    (folder / "samples.jsonl").write_text("newer\n")
    assert box.run("bash", START, KEEP=keep)[0] == 0
    assert (folder / "samples.jsonl").read_text() == "newer\nline\n"


def test_a_full_bucket_does_not_end_the_run(box: Machine) -> None:
    box.write("tar", '#!/bin/sh\necho half >"$2"\nexit 2\n')
    code, out = box.run("bash", START, KEEP=str(box.home / "keep"))
    assert code == 0
    assert "no archive could be written" in out
    assert archives(box) == []


def test_a_failed_installation_still_does_what_comes_after(box: Machine) -> None:
    (box.home / "bin" / "ssd-lite").unlink()
    box.write("uv", '#!/bin/sh\necho "$@" >>"$HOME/uv"\n[ "$1" = venv ]\n')
    code, out = box.run(
        "bash",
        START,
        THEN='echo once $SSD_LITE_EXIT_CODE >>"$HOME/then"',
        SSD_LITE_PACKAGE="ssd-lite[x] @ file:///a b.whl",
    )
    assert code == 1
    assert "the installation failed" in out
    assert (box.home / "then").read_text() == "once 1\n"
    asked = (box.home / "uv").read_text().splitlines()
    assert asked[0] == f"venv --quiet --allow-existing --python 3.12 {box.home}/ssd-lite-env"
    assert asked[1].endswith("ssd-lite[x] @ file:///a b.whl")
    assert not box.words


def test_a_stop_while_installing_still_does_what_comes_after(box: Machine) -> None:
    (box.home / "bin" / "ssd-lite").unlink()
    box.write("uv", '#!/bin/sh\ntouch "$HOME/installing"\nsleep 1\n')
    after = {"THEN": 'echo once $SSD_LITE_EXIT_CODE >>"$HOME/then"', "SSD_LITE_PACKAGE": "ssd-lite @ file:///x.whl"}
    process = box.start("bash", START, **after)
    until((box.home / "installing").exists)
    process.send_signal(signal.SIGTERM)
    code, out = ended(process)
    assert (code, (box.home / "then").read_text()) == (75, "once 75\n"), out
    assert not box.words


def test_a_folder_that_cannot_be_made_still_does_what_comes_after(box: Machine) -> None:
    (box.home / "file").write_text("no folder")
    code, out = box.run("bash", START, RUN_DIR=f"{box.home}/file/run", THEN='echo once >>"$HOME/then"')
    assert (code, (box.home / "then").read_text()) == (1, "once\n"), out
    assert "cannot be written" in out
    assert not box.words


def test_an_archive_that_cannot_be_unpacked_still_does_what_comes_after(box: Machine) -> None:
    keep = box.home / "keep"
    assert box.run("bash", START, KEEP=str(keep))[0] == 0
    assert len(archives(box)) == 1
    (box.home / "words").unlink()
    box.write("tar", '#!/bin/sh\n[ "$1" = -tf ] && echo ./.last-entry && exit\nexit 2\n')
    fresh = {"RUN_DIR": str(box.home / "next"), "THEN": 'echo once >>"$HOME/then"'}
    code, out = box.run("bash", START, KEEP=str(keep), **fresh)
    assert (code, (box.home / "then").read_text()) == (1, "once\n"), out
    assert not box.words


def test_without_a_package_nothing_of_that_name_is_fetched(box: Machine) -> None:
    (box.home / "bin" / "ssd-lite").unlink()
    box.write("uv", '#!/bin/sh\ntouch "$HOME/uv"\n')
    code, out = box.run("bash", START)
    assert code == 2
    assert "SSD_LITE_PACKAGE says what to install" in out
    assert not (box.home / "uv").exists()


def test_a_package_that_brings_no_ssd_lite_is_no_success(box: Machine) -> None:
    """`source` without a slash is a name on PyPI, whoever may own it."""
    (box.home / "bin" / "ssd-lite").unlink()
    box.write("uv", "#!/bin/sh\n")
    code, out = box.run("bash", START, SSD_LITE_PACKAGE="source[data]")
    assert code == 1
    assert "brought no ssd-lite" in out


def test_install_alone(box: Machine) -> None:
    assert box.run("bash", START, "install", RECIPE="")[0] == 0
    assert not box.words
