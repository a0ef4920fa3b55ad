"""Measure dock."""
