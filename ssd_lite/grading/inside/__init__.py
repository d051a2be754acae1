"""The code that runs inside the sandbox, on the standard library alone: supervisor, program runner, confinement.

Nothing here decides a verdict; it maps inputs to plain data, and the grader outside compares.
"""
