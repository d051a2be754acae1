"""Our GGUF: read, written and quantised."""
