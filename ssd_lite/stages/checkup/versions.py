"""Versions and what a package asks of others, compared as PEP 440 says, without the package `packaging`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_n>\d*))?"
    r"(?P<post>-(?P<post_n1>\d+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n2>\d*))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d*))?(?:\+[a-z0-9._-]+)?",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"(===|==|!=|~=|<=|>=|<|>)\s*([^\s,]+)")
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?$")
_PRE = {"alpha": 0, "a": 0, "beta": 1, "b": 1, "preview": 2, "pre": 2, "c": 2, "rc": 2}
Key = tuple[int, tuple[int, ...], tuple[int, int], int, float]


@dataclass(frozen=True)
class Requirement:
    """A line of a package's requirements: normalised name, specifier as written, the extra it belongs to or ""."""

    name: str
    specifier: str
    extra: str = ""

    @property
    def line(self) -> str:
        """As pip takes it."""
        return f"{self.name}{self.specifier}"


def installed(package: str) -> str | None:
    """The version of an installed package; read from its metadata, nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements(package: str) -> list[Requirement]:
    """What an installed package asks for, extras included; markers other than the extra are not evaluated."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    return [found for line in lines if (found := parse(line)) is not None]


def parse(line: str) -> Requirement | None:
    """A line such as `torch<2.15.0,>=2.4.0; extra == "train"`; None for what is no requirement by version."""
    found = _REQUIREMENT.match(line.strip())
    if found is None:
        return None
    extra = re.search(r"extra\s*==\s*[\"']([^\"']+)[\"']", found[3] or "")
    return Requirement(normalised(found[1]), found[2].strip(), extra[1] if extra else "")


def normalised(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def allows(specifier: str, found: str) -> bool:
    """True where the version satisfies every clause. Pre-releases count as what they are. ValueError for no version."""
    return all(_clause(operator, wanted, found) for operator, wanted in _CLAUSE.findall(specifier))


def _clause(operator: str, wanted: str, found: str) -> bool:
    if operator == "===":
        return found == wanted
    if wanted.endswith(".*"):
        return _starts(found, wanted[:-2]) == (operator == "==")
    here, there = key(found), key(wanted)
    match operator:
        case "==":
            return here == there
        case "!=":
            return here != there
        case "<=":
            return here <= there
        case ">=":
            return here >= there
        case "~=":
            return here >= there and _starts(found, wanted.rpartition(".")[0])
        case "<":
            # 2.0rc1 is before 2.0, but `<2.0` does not mean it.
            return here < there and not (_is_out(there) and here[:2] == there[:2] and here[3] == there[3])
        case _:
            # Neither does `>2.0` mean 2.0.post1.
            return here > there and not (_is_out(there) and there[3] < 0 and here[:2] == there[:2])


def key(text: str) -> Key:
    """Orders versions: epoch, release without trailing zeros, pre-release, post-release, development release.

    A local label (`+cpu`) does not count. Raises ValueError for what is no version.
    """
    found = _VERSION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no version")
    release = list(_release(found))
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    post = -1
    if found["post"]:
        post = int(found["post_n1"] or found["post_n2"] or 0)
    dev = float(int(found["dev_n"] or 0)) if found["dev"] else float("inf")
    if found["pre"]:
        pre = (_PRE[found["pre"].lower()], int(found["pre_n"] or 0))
    else:
        # A development release alone comes before every pre-release of the same number.
        pre = (-1, 0) if found["dev"] and not found["post"] else (3, 0)
    return int(found["epoch"] or 0), tuple(release), pre, post, dev


def _release(found: re.Match[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in found["release"].split("."))


def _starts(text: str, prefix: str) -> bool:
    """True where the release begins with that of `prefix`, missing parts being zero."""
    here, there = _VERSION.fullmatch(text.strip()), _VERSION.fullmatch(prefix)
    if here is None or there is None:
        raise ValueError(f"{text!r} or {prefix!r} is no version")
    wanted = _release(there)
    padded = (_release(here) + (0,) * len(wanted))[: len(wanted)]
    return padded == wanted and (here["epoch"] or "0") == (there["epoch"] or "0")


def _is_out(one: Key) -> bool:
    """No pre-release and no development release."""
    return one[2] == (3, 0) and one[4] == float("inf")
