"""The commands of `ssd-lite`, one file a group: options in, one stage call, one line out."""
