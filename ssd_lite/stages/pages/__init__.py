"""The pages a person reads: the report, its sections, the model card."""
