"""Another model's answers as training samples: the teacher answers with its own tokenizer, the student keeps the text.

What is recorded are ids of the student, so that curating and training need not know who answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_lite.prompts import render
from ssd_lite.records import Problem, Sample

if TYPE_CHECKING:
    from ssd_lite.engines.sampling.sampler import Request
    from ssd_lite.engines.tokenizer import ChatTokenizer


class Student:
    """Makes a teacher's samples those of the model that learns from them.

    The prompt ids become those of the student's template. Completion ids stay as sampled where both tokenizers number
    the same tokens alike (`same_vocabulary`), else the text is tokenised anew; special tokens in it are mere text then.
    The last id is an end token of the student exactly where the teacher ended by itself.
    """

    def __init__(
        self, folder: Path, teacher: ChatTokenizer, problems: Sequence[Problem], enable_thinking: bool | None = None
    ) -> None:
        from ssd_lite.engines.tokenizer import ChatTokenizer

        self._teacher, self._own = teacher, ChatTokenizer.load(folder, enable_thinking)
        self._prompts = {prompt.problem_id: prompt for prompt in render(problems, self._own)}
        self.same_vocabulary = self._own.numbers_like(teacher)

    def requests(self, wanted: Mapping[tuple[str, int], Request]) -> dict[tuple[str, int], Request]:
        """The requests as their records show them: with the student's prompts, under the same keys and seeds."""
        return {key: replace(one, prompt=self._prompts[one.prompt.problem_id]) for key, one in wanted.items()}

    def learns(self, sample: Sample) -> Sample:
        """The teacher's sample with the student's prompt and completion ids."""
        ids = sample.completion_ids
        end = ids[-1:] if sample.finish_reason == "stop" else ()
        body = ids[: len(ids) - len(end)]
        if not self.same_vocabulary:
            text = self._teacher.decode(body, skip_special=True)
            body = tuple(self._own.encode_text(text))
        # An end token of the student that is none of the teacher's would end the turn in the middle.
        body = tuple(token for token in body if token not in self._own.end_ids)
        tail = (self._end(end[0]),) if end else ()
        prompt = self._prompts[sample.problem_id]
        return replace(sample, prompt_ids=prompt.ids, completion_ids=body + tail)

    def _end(self, sampled: int) -> int:
        """The student's end token for one of the teacher's: the same token where it is one there, else its own."""
        token = self._own.id_of(self._teacher.token(sampled))
        return token if token is not None and token in self._own.end_ids else self._own.end_id
