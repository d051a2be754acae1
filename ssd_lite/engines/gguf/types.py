"""Which number format each tensor takes in each type of GGUF: llama.cpp's quantiser is asked, no rule stands here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssd_lite.engines.gguf.ggml import PLAIN_FORMATS, Format, formats
from ssd_lite.engines.gguf.header import Layout, header_bytes, padded
from ssd_lite.engines.gguf.imatrix_file import Imatrix
from ssd_lite.engines.gguf.model import PLAIN_TYPES, GgufModel, GgufTensor
from ssd_lite.engines.llama_log import llama_library, recent_log, whole_log
from ssd_lite.errors import UserError
from ssd_lite.recipe_section import UNAFFECTED

# Our type → llama.cpp's file type, and the bits a weight takes at most (for plans; a file's own size is exact).
FILE_TYPES = {
    "f32": (0, 32.0),
    "f16": (1, 16.0),
    "bf16": (32, 16.0),
    "q8_0": (7, 8.5),
    "q6_k": (18, 6.6),
    "q5_k_m": (17, 6.0),
    "q5_k_s": (16, 5.9),
    "q5_1": (9, 6.2),
    "q5_0": (8, 5.8),
    "q4_k_m": (15, 5.3),
    "q4_k_s": (14, 5.1),
    "q4_1": (3, 5.4),
    "q4_0": (2, 5.0),
    "iq4_nl": (25, 5.0),
    "iq4_xs": (30, 5.0),
    "q3_k_l": (13, 4.8),
    "q3_k_m": (12, 4.5),
    "q3_k_s": (11, 4.2),
    "iq3_m": (27, 4.5),
    "iq3_s": (26, 4.3),
    "iq3_xs": (22, 4.2),
    "iq3_xxs": (23, 4.0),
    "q2_k": (10, 4.0),
    "q2_k_s": (21, 4.0),
    "iq2_m": (29, 3.8),
    "iq2_s": (28, 3.7),
    "iq2_xs": (20, 3.6),
    "iq2_xxs": (19, 3.4),
    "iq1_m": (31, 3.2),
    "iq1_s": (24, 3.1),
    "tq2_0": (37, 3.6),
    "tq1_0": (36, 3.3),
    "q2_0": (41, 3.6),
    "q1_0": (40, 2.8),
    "mxfp4_moe": (38, 8.5),
}
# "[   3/ 272] blk.0.attn_q.weight - [ 576, 576, 1, 1], type = bf16, size = 0.633 MiB -> 0.336 MiB (q8_0)"
_TENSOR_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] (?P<name>\S+) +- \[[^\]]*\], type = *(?P<stored>\S+), size = *[\d.]+ MiB"
    r"(?: -> *[\d.]+ MiB \((?P<wanted>\S+)\))?",
    re.MULTILINE,
)
_NEWER = 'Type: pip install -U "llama-cpp-python>=0.3.36"'
_NEEDS_IMATRIX = "will require an imatrix"


def plain_layout(model: GgufModel, gguf_type: str) -> Layout:
    """The layout of a 16- or 32-bit type: vectors stay float32."""
    dtype, file_type = PLAIN_TYPES[gguf_type]
    return Layout(file_type, [PLAIN_FORMATS["F32" if t.is_vector else dtype] for t in model.tensors])


def layouts(model: GgufModel, gguf_types: Sequence[str], imatrix: Imatrix | None = None) -> dict[str, Layout]:
    """The layout of each type.

    UserError where one needs an importance matrix and there is none, or another model's, and for an older llama.cpp.
    """
    found = {name: plain_layout(model, name) for name in gguf_types if name in PLAIN_TYPES}
    quantised = [name for name in gguf_types if name not in PLAIN_TYPES]
    if quantised:
        with _skeleton(model) as path:
            for name in quantised:
                found[name] = _asked(model, path, name, None if name in UNAFFECTED else imatrix)
    return {name: found[name] for name in gguf_types}


def quantiser_settings(gguf_type: str, imatrix: Imatrix | None) -> tuple[Any, list[Any]]:
    """llama.cpp's settings for a type, and what must stay alive while they are used."""
    library = llama_library()
    settings = library.llama_model_quantize_default_params()
    settings.ftype = FILE_TYPES[gguf_type][0]
    if imatrix is None:
        return settings, []
    if not hasattr(library, "llama_model_imatrix_data"):
        raise UserError(
            "this llama-cpp-python takes no importance matrix.",
            where="--imatrix",
            next_step=_NEWER,
        )
    entries = (library.llama_model_imatrix_data * (len(imatrix.columns) + 1))()  # an empty one ends the list
    for entry, (name, column) in zip(entries, imatrix.columns.items(), strict=False):
        entry.name, entry.size = name.encode(), len(column)
        entry.data = column.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings.imatrix = entries
    return settings, [entries, imatrix]


@contextlib.contextmanager
def _skeleton(model: GgufModel) -> Iterator[str]:
    """A path to the model's exact GGUF without its numbers: a file of full length that takes no room."""
    layout = plain_layout(model, model.exact)
    head = header_bytes(model, layout)
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file: Any = stack.enter_context(os.fdopen(os.memfd_create("skeleton.gguf"), "wb"))
            path = f"/proc/self/fd/{file.fileno()}"
        else:
            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".gguf"))
            path = file.name
        file.write(head)
        file.truncate(len(head) + sum(map(padded, layout.sizes(model))))
        file.flush()
        yield path


def _asked(model: GgufModel, skeleton: str, gguf_type: str, imatrix: Imatrix | None) -> Layout:
    settings, kept = quantiser_settings(gguf_type, imatrix)
    if not hasattr(settings, "dry_run"):
        raise UserError(
            "this llama-cpp-python cannot say which number format each tensor takes.",
            where=f"the GGUF type {gguf_type}",
            next_step=f"{_NEWER}; or take f32, f16 or bf16, which need no quantiser.",
        )
    settings.dry_run = True
    with whole_log() as log:
        status = llama_library().llama_model_quantize(os.fsencode(skeleton), b"", ctypes.byref(settings))
    del kept
    text = "".join(log)
    if status != 0:
        raise UserError(
            f"llama.cpp cannot quantise it to {gguf_type} ({recent_log()}).",
            where=str(model.weights.folder),
            next_step="Choose another type, f16 for instance.",
        )
    names = {line["name"]: line["wanted"] or line["stored"] for line in _TENSOR_LINE.finditer(text)}
    if set(names) != {tensor.name for tensor in model.tensors}:
        raise RuntimeError(f"llama.cpp named {len(names)} of {len(model.tensors)} tensors: {text[-500:]}")
    layout = Layout(FILE_TYPES[gguf_type][0], [formats()[names[t.name]] for t in model.tensors], True, imatrix)
    if imatrix is None and _NEEDS_IMATRIX in text:
        raise UserError(
            f"{gguf_type} needs an importance matrix: without one it is garbage.",
            where="--to, export.types",
            next_step="Add --imatrix (export.imatrix: true), or take a type of more bits, q4_k_m for one.",
        )
    if imatrix is not None:
        _check_imatrix(model.tensors, layout.formats, imatrix)
    return layout


def _check_imatrix(tensors: Sequence[GgufTensor], wanted: Sequence[Format], imatrix: Imatrix) -> None:
    for tensor, form in zip(tensors, wanted, strict=True):
        if form.block_weights == 1 or not tensor.name.startswith("blk."):
            continue  # what a matrix says of the embedding and the head, llama.cpp does not collect by default
        column = imatrix.columns.get(tensor.name, np.empty(0))
        if len(column) != tensor.shape[-1]:
            raise UserError(
                f"is of another model: {tensor.name} has {len(column)} columns there, here {tensor.shape[-1]}.",
                where=imatrix.file,
                next_step="Compute it from this model: --imatrix PROMPTS.",
            )
