"""Evaluation of predicted labels against the truth."""
