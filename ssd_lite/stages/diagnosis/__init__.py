"""The parts of the stage diagnose."""
