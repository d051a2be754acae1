"""Is a completion right? CPU only, no machine learning: extract, sandbox, grade, statistics."""
