"""Does quantising move a tuned model's laws farther than its base's, on the same texts? Needs a run that is exported.

    python tests/bench/quantised_tails.py RUN

One line for each model, arm whose completions are read, and type of export.types.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ssd_lite.engines.checks.gguf_measures import choose_reference, measure
from ssd_lite.engines.gguf.set import write_gguf_set
from ssd_lite.engines.model_source import hf_folder
from ssd_lite.run_folder import RunFolder
from ssd_lite.stages.base_model import base_model
from ssd_lite.stages.exports.check_texts import arm_texts


def main(run: RunFolder) -> None:
    tuned = {file["type"]: run.path / file["path"] for file in run.require("export")["files"]}
    base, threads = hf_folder(base_model(run)), run.recipe.threads
    with tempfile.TemporaryDirectory(dir=run.path) as folder:
        files = {gguf_type: Path(folder) / f"base-{gguf_type}.gguf" for gguf_type in tuned}
        write_gguf_set(base, files, threads=threads)
        for arm in ("base", "tuned"):
            for name, model, paths in (("base", base, files), ("tuned", run.merged, tuned)):
                texts, reference = arm_texts(run, arm, model), choose_reference(model, paths)
                if texts is None or isinstance(reference, str):
                    raise SystemExit(f"nothing to read for the arm {arm}, or {reference}")
                for gguf_type, found in measure(reference, paths, texts.texts, lambda _: None, threads)[1].items():
                    print(
                        f"{name} on completions of {arm}, {gguf_type}: KL {found.kl:.4f} ± {found.kl_error or 0:.4f}, "
                        f"same best token {100 * found.same_top:.1f} %, {found.positions} positions",
                        flush=True,
                    )


if __name__ == "__main__":
    main(RunFolder.open(Path(sys.argv[1])))
