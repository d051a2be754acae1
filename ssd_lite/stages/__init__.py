"""One module per command: each reads files of the run folder and writes one."""
