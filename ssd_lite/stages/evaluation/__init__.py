"""The parts of the stage evaluate: arms, their reports, the guard."""
