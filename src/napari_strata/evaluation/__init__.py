"""Evaluation: a model's labels, or anybody's, against the truth."""
