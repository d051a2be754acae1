"""The only room with heavy libraries: torch, transformers, peft, bitsandbytes, unsloth, llama_cpp."""
