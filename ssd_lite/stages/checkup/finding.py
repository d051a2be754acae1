"""What doctor says of one thing: its name, how it stands, what was found, and the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "absent"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """`status`: ok; warn: works, but worse or slower; fail: stops a run; absent: optional and not installed.

    `advice` is a line to type, with what else to know after a `#`; only a finding that is ok may have none. `unusable`:
    a warning only as long as nobody needs the thing.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    unusable: bool = False

    def __post_init__(self) -> None:
        if self.status != "ok" and not self.advice:
            raise ValueError(f"{self.name}: what is not ok says how to mend it")

    @property
    def facts(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"name": self.name, "status": self.status, "found": self.found, "advice": self.advice}


def needed(finding: Finding, by: str) -> Finding:
    """The finding as a run sees it whose recipe key `by` needs the thing: what is absent or unusable stops it."""
    if finding.status != "absent" and not finding.unusable:
        return finding
    return replace(finding, status="fail", found=f"{finding.found}; {by} needs it")


def as_text(findings: Sequence[Finding]) -> str:
    """One line a finding, in columns."""
    width = max((len(finding.name) for finding in findings), default=0)
    return "\n".join(_line(finding, width) for finding in findings)


def _line(finding: Finding, width: int) -> str:
    advice = f". Type: {finding.advice}" if finding.advice else ""
    return f"{finding.status:<6}  {finding.name:<{width}}  {finding.found.rstrip('.')}{advice}"


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB"
