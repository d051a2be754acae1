"""Simple Self-Distillation on one GPU, or none: sample, train, merge, evaluate, export."""

__version__ = "0.1.0"
