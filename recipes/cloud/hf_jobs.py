# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = []
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "10h"
# secrets = ["HF_TOKEN"]
# ///
"""A run as a Hugging Face Job, kept in a bucket of yours, gone on with when it is started again.

Start:    hf jobs uv run --flavor l4x1 --timeout 10h --attempts 3 --secrets HF_TOKEN --detach \
            -v hf://buckets/ME/ssd-runs:/keep -e RECIPE=qwen3-4b-instruct-qlora-24gb \
            -e MAX_HOURS=8 -e MAX_COST=8 -e PRICE=0.80 --with 'ssd-lite[unsloth,gguf,data] @ git+https://...' \
            recipes/cloud/hf_jobs.py
Forget:   the job ends itself at MAX_HOURS or MAX_COST; --timeout is the provider's own end, per attempt, and 30 minutes
          where it is left out. A bucket costs storage. A paid plan is wanted.
Checked:  huggingface_hub 2.4.0: the line above with --dry-run; this script on a CPU. Not run on the provider (no
          account).

`--with` names the package, which is not on PyPI: a git URL, or a wheel of yours that travels with the job:
-v ./dist:/dist --with 'ssd-lite[unsloth,gguf,data] @ file:///dist/ssd_lite-0.1.0-py3-none-any.whl'
Settings are those of start.sh, with -e. The table [tool.hf-jobs] is for newer clients and for a flag left out.
"""

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Become start.sh, which the package brings along, with this Python's ssd-lite first on PATH."""
    command = [sys.executable, "-m", "ssd_lite", "recipes", "cloud", "start.sh"]
    start = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    os.environ.setdefault("KEEP", "/keep")
    if not Path(os.environ["KEEP"]).is_dir():
        sys.exit(f"no bucket at {os.environ['KEEP']}: the run would be lost. Add -v hf://buckets/ME/NAME:/keep")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.execvp("bash", ["bash", "-c", start, "start.sh"])


if __name__ == "__main__":
    main()
