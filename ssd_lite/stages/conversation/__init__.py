"""The parts of the stage chat."""
