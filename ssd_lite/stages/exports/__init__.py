"""The parts of the stage export: what is written, checked and laid beside it for serving."""
