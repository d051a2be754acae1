"""Peak memory and time of exporting a model of 8B shape with an adapter, without merging it first.

    python tests/bench/export_memory.py --shape qwen3-8b --to q8_0,q4_k_m --work DIR

DIR takes the model (16 GB at full size) and the files; --help names the other options. The peak is VmHWM of a process
of its own: anonymous, file-mapped and shared pages together, as the kernel counts them; RssAnon, RssFile and RssShmem
are those at the end. With --limit-s the export is stopped by SIGTERM after so long; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]


def main() -> None:
    """Build what is missing and export it."""
    from big_model import measure, write_big_adapter, write_big_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-8b")
    parser.add_argument("--to", default="q8_0,q4_k_m")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--modules", default="proj", help="which linear layers have an adapter: q_proj,v_proj")
    parser.add_argument("--hole", action="store_true")
    parser.add_argument("--limit-s", type=float)
    options = parser.parse_args()
    base, adapter = options.work / options.shape, options.work / f"{options.shape}-adapter"
    if not base.exists():
        started = time.monotonic()
        count = write_big_model(base, options.shape, layers=options.layers, hole=options.hole)
        write_big_adapter(adapter, base, modules=options.modules)
        print(f"{count / 1e9:.2f} G weights written in {time.monotonic() - started:.0f} s")
    print(json.dumps(measure(base, adapter, options.to, options.work / "out", options.limit_s), indent=2))


if __name__ == "__main__":
    main()
