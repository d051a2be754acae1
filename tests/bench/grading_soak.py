"""Twenty thousand gradings, good and hostile programs mixed; then: no process, no descriptor, no file, no memory left.

Run by hand: `python tests/bench/grading_soak.py [COUNT]`. Lists the temporary folders and the home folder before and
after.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from ssd_lite.grading.grader import Grader, Submission
from ssd_lite.problem_tests import FunctionalTest, StdinTest
from ssd_lite.records import Limits, Problem

CALLS = Problem("calls", (), FunctionalTest("add", (([1, 2], 3), ([5, 7], 12))), limits=Limits(cpu_s=0.2, wall_s=2))
SCRIPT = Problem("script", (), StdinTest((("1 2\n", "3\n"),)), limits=Limits(cpu_s=0.2, wall_s=2))
PROGRAMS = [
    (CALLS, "def add(a, b):\n    return a + b\n"),
    (CALLS, "def add(a, b):\n    return 0\n"),
    (CALLS, "import os\ndef add(a, b):\n    os.fork()\n"),
    (SCRIPT, "print(sum(map(int, input().split())))"),
    (SCRIPT, "import sys\nsys.exit(3)"),
    (SCRIPT, "print('x' * (40 << 20))"),
    (SCRIPT, "x = bytearray(6 << 30)"),
]
RARE = [(SCRIPT, "open('left', 'w').write('x')\nprint(3)"), (CALLS, "def add(a, b):\n    while True: pass\n")]


def listing() -> set[str]:
    """The names in the temporary folders and the home folder."""
    folders = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path.home()]
    return {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}


def children() -> int:
    """How many processes have this one as their parent."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            count += int(status.read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        except OSError:
            continue
    return count


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    before, descriptors = listing(), len(os.listdir("/proc/self/fd"))
    start, verdicts, warm_kib = time.time(), Counter[str](), 0
    with Grader() as grader:
        rows = (
            Submission(problem, number, program)
            for number in range(count)
            for problem, program in [RARE[number % 2] if number % 250 == 249 else PROGRAMS[number % len(PROGRAMS)]]
        )
        for number, grade in enumerate(grader.grade(rows)):
            verdicts[f"{grade.problem_id} {grade.verdict}"] += 1
            if number == count // 10:
                warm_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tier = grader.tier
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - warm_kib
    print(f"{count} gradings, tier {tier}, {time.time() - start:.0f} s: {dict(verdicts.most_common())}")
    print(f"peak memory grew by {grown} KiB after the first tenth")
    print(f"children left: {children()}; descriptors {descriptors} -> {len(os.listdir('/proc/self/fd'))}")
    print(f"new names: {sorted(listing() - before) or 'none'}; gone: {sorted(before - listing()) or 'none'}")


if __name__ == "__main__":
    main()
