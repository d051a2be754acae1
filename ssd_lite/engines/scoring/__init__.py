"""What a model makes of given texts, position by position."""
