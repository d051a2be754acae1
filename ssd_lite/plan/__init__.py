"""Memory, time, disk and money of a recipe on a machine, by arithmetic only: no weights, no card, no heavy library."""
