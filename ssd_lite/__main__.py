"""`python -m ssd_lite` is `ssd-lite`."""

from ssd_lite.cli import main

if __name__ == "__main__":
    main(prog_name="ssd-lite")
