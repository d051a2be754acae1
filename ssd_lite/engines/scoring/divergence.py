"""How far a model's laws lie from a reference's on the same texts: KL over the vocabulary, best token, perplexity.

Both models are read one after the other: the reference's log-probabilities wait in an unnamed file, not in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ssd_lite.engines.sampling.sampler import CountTokens, Engine
from ssd_lite.engines.scoring.position_facts import Bools
from ssd_lite.engines.scoring.score import visit
from ssd_lite.engines.scoring.scorer import Text
from ssd_lite.errors import UserError

Rows = npt.NDArray[np.float32]
_LOWEST = np.float32(-1e4)
"""exp of it is 0, and 0 times it is 0: some models mask padding tokens with -inf."""


@dataclass(frozen=True)
class Divergence:
    """One model against the reference over P positions. KL(reference ‖ model) in nats a token, at T = 1, untruncated.

    `kl_error` is the standard error of the mean with each text as one unit, since positions of a text hang together,
    None for a single text; `kl_high` the 99th percentile over positions; `same_top` the share of positions with the
    same likeliest token; `perplexity` exp of the mean of -log p of the tokens that stand there.
    """

    positions: int
    perplexity: float
    kl: float
    kl_error: float | None
    kl_high: float
    same_top: float


class Reference:
    """The laws of a reference model on some texts. A context manager; the file is gone with it, even after a kill.

    `folder` is where the file lies: 4 bytes a position and token of the vocabulary.
    """

    def __init__(self, texts: Sequence[Text], folder: Path) -> None:
        self._texts, self._folder = texts, folder
        counts = [len(text.positions) for text in texts]
        self._starts = np.cumsum([0, *counts])
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._laws: Rows | None = None
        self._log_probs = np.zeros(sum(counts))

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._laws = None
        self._file.close()

    @property
    def perplexity(self) -> float:
        """Of the reference itself on the texts' tokens."""
        return float(np.exp(-self._log_probs.mean()))

    def read(self, engine: Engine, model: Path, count_tokens: CountTokens, threads: int | None = None) -> None:
        """Read the reference, a folder (hf) or a GGUF (llama_cpp).

        Raises as `scorer.visit` does, and UserError where the disk has no room for its laws.
        """

        def take(number: int, logits: Rows, here: Bools) -> None:
            rows = self._rows(number, here)
            if self._laws is None:
                shape = (len(self._log_probs), logits.shape[1])
                self._reserve(4 * shape[0] * shape[1])
                self._laws = np.memmap(self._file, dtype=np.float32, mode="w+", shape=shape)
            laws = log_probabilities(logits)
            self._laws[rows] = laws
            self._log_probs[rows] = _of_tokens(laws, self._texts[number].tokens[here])

        for _ in visit(engine, model, self._texts, take, count_tokens, threads):
            pass

    def _reserve(self, size: int) -> None:
        """Take the room before it is mapped: a write into a map that finds the disk full is SIGBUS, no exception."""
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            raise UserError(
                f"cannot hold the {size / 1e6:.0f} MB of the reference's laws: {error.strerror}.",
                where=str(self._folder),
                next_step="Make room, or leave the measuring out (export.check: false, --no-check).",
            ) from error

    def compare(self, engine: Engine, model: Path, count_tokens: CountTokens, threads: int | None = None) -> Divergence:
        """Read another model at the same positions. Raises ValueError before `read`.

        Where one vocabulary is longer (rows that only pad it), both laws are taken over the tokens that both have.
        """
        if self._laws is None:
            raise ValueError("the reference is read first")
        reference = self._laws
        count = len(self._log_probs)
        kl, same, found = np.zeros(count), np.zeros(count, dtype=bool), np.zeros(count)

        def take(number: int, logits: Rows, here: Bools) -> None:
            rows = self._rows(number, here)
            theirs, laws = reference[rows], log_probabilities(logits)
            found[rows] = _of_tokens(laws, self._texts[number].tokens[here])
            if theirs.shape != laws.shape:
                width = min(theirs.shape[1], laws.shape[1])
                theirs, laws = log_probabilities(theirs[:, :width]), log_probabilities(laws[:, :width])
            kl[rows] = (np.exp(theirs) * (theirs - laws)).sum(axis=1, dtype=np.float64)
            same[rows] = theirs.argmax(axis=1) == laws.argmax(axis=1)

        for _ in visit(engine, model, self._texts, take, count_tokens, threads):
            pass
        return Divergence(
            positions=count,
            perplexity=float(np.exp(-found.mean())),
            kl=float(kl.mean()),
            kl_error=self._error(kl),
            kl_high=float(np.percentile(kl, 99)),
            same_top=float(same.mean()),
        )

    def _rows(self, number: int, here: Bools) -> npt.NDArray[np.int64]:
        rows: npt.NDArray[np.int64] = self._starts[number] + np.flatnonzero(here)
        return rows

    def _error(self, values: npt.NDArray[np.float64]) -> float | None:
        """Standard error of the mean of `values` [P], a ratio of the texts' sums to their positions, linearised."""
        texts = len(self._texts)
        if texts < 2:
            return None
        counts = np.diff(self._starts)
        rest = np.add.reduceat(values - values.mean(), self._starts[:-1])
        return float(np.sqrt(texts / (texts - 1) * (rest**2).sum()) / counts.sum())


def log_probabilities(logits: Rows) -> Rows:
    """Log-probabilities [n, V] at T = 1; powers in float32, sums in float64."""
    shifted = np.maximum(logits - logits.max(axis=1, keepdims=True), _LOWEST)
    total = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64)).astype(np.float32)
    laws: Rows = shifted - total[:, None]
    return laws


def _of_tokens(laws: Rows, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = np.take_along_axis(laws, tokens[:, None], axis=1)[:, 0]
    return found
