"""Completions under a law: transformers, llama.cpp, or a server."""
