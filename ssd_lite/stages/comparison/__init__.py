"""The parts of the stage compare."""
