"""Several GGUF types of one model in one pass over its tensors, each file whole under its name or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ssd_lite.container import usable_cores
from ssd_lite.engines.gguf.header import header_bytes
from ssd_lite.engines.gguf.imatrix_file import Imatrix
from ssd_lite.engines.gguf.model import GgufModel, Weights
from ssd_lite.engines.gguf.part import DiskError, GgufPart
from ssd_lite.engines.gguf.quantise import Vocabulary
from ssd_lite.engines.gguf.stream import Output, write_tensors
from ssd_lite.engines.gguf.types import layouts
from ssd_lite.engines.weights.merged_weights import MergedWeights
from ssd_lite.engines.weights.model_cache import check_space, only_writer
from ssd_lite.engines.weights.model_folder import ModelFolder, weight_files
from ssd_lite.errors import UserError
from ssd_lite.progress import Progress
from ssd_lite.recipe_section import Decoding

Say = Callable[[str], None]


def write_gguf_set(
    source: Path | Weights,
    paths: Mapping[str, Path],
    *,
    name: str = "",
    decoding: Decoding | None = None,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    say: Say | None = None,
) -> dict[str, float]:
    """Write the files of `paths` (type → file) that are not there yet; seconds of own work by type.

    `source` is a model folder, or a base with its adapter, which is merged tensor by tensor. A file under its final
    name is whole, because it came by rename; a pass that was cut short goes on.
    """
    weights = ModelFolder(source) if isinstance(source, Path) else source
    with _only_writers(paths.values()):
        missing = {gguf_type: path for gguf_type, path in paths.items() if not path.exists()}
        if not missing:
            return {}
        return write_pass(weights, missing, name=name, decoding=decoding, imatrix=imatrix, threads=threads, say=say)


def write_pass(
    weights: Weights,
    paths: Mapping[str, Path],
    *,
    name: str = "",
    decoding: Decoding | None = None,
    imatrix: Imatrix | None = None,
    threads: int | None = None,
    say: Say | None = None,
) -> dict[str, float]:
    """Write all of `paths` in one pass. Layouts and room on the disk are checked before; `say` gets one line on both.

    Raises UserError for what cannot be converted, Stopped after a signal; then the next call goes on.
    """
    model = GgufModel(weights, name, decoding)
    planned, stamp = layouts(model, list(paths), imatrix), _stamp(weights, imatrix)
    outputs = []
    for gguf_type, layout in planned.items():
        part = GgufPart(paths[gguf_type], header_bytes(model, layout), layout.sizes(model), stamp)
        outputs.append(Output(part, layout))
    _check_room(outputs, list(paths), say)
    try:
        for output in outputs:
            output.part.open()
        with ThreadPoolExecutor(threads or usable_cores()) as pool:
            _run(model, weights, outputs, pool)
        for output in outputs:
            if output.layout.quantised:
                Vocabulary(output.part.part).close()  # llama.cpp can open it
            output.part.publish()
    except DiskError:
        raise
    except UserError:
        for output in outputs:
            output.part.discard()  # the same command would end the same way
        raise
    finally:
        for output in outputs:
            output.part.close()
    return {gguf_type: output.seconds for gguf_type, output in zip(planned, outputs, strict=True)}


def _run(model: GgufModel, weights: Weights, outputs: Sequence[Output], pool: ThreadPoolExecutor) -> None:
    merged = weights if isinstance(weights, MergedWeights) else None
    done = min(output.part.done for output in outputs)
    million, passed = 1_000_000, sum(tensor.count for tensor in model.tensors[:done])
    with Progress(-(-model.count // million), "million weights", "export", start=passed // million) as progress:

        def advance(count: int) -> None:
            nonlocal passed
            before, passed = passed, passed + count
            progress.advance(-(-passed // million) - -(-before // million))

        write_tensors(model, outputs, pool, advance, merged)
    if merged is not None:
        merged.check()


def _check_room(outputs: Sequence[Output], types: Sequence[str], say: Say | None) -> None:
    folder, needed = outputs[0].part.out.parent, sum(output.part.missing_bytes for output in outputs)
    free = check_space(folder, needed, f"writing {', '.join(types)}")
    if say is not None:
        goes_on = "goes on, " if any(output.part.done for output in outputs) else ""
        say(f"export: {', '.join(types)}: {goes_on}{needed / 1e9:.2f} GB to write, {free / 1e9:.2f} GB free")


@contextmanager
def _only_writers(paths: Iterable[Path]) -> Iterator[None]:
    """Locks in one order everywhere, so that two processes with common files never wait for each other."""
    with ExitStack() as stack:
        for path in sorted(set(paths)):
            stack.enter_context(only_writer(path))
        yield


def _stamp(weights: Weights, imatrix: Imatrix | None) -> str:
    """What the numbers come from: files by size and time, since hashing them costs as much as an export."""
    merged = weights if isinstance(weights, MergedWeights) else None
    files = [*weight_files(weights.folder), *(merged.files if merged else [])]
    facts = [f"{file.absolute()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return "\n".join([*facts, merged.words if merged else "", imatrix.digest if imatrix else ""])
