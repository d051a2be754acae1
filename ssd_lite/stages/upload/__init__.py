"""The parts of the stage push."""
