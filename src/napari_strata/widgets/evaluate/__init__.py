"""Evaluate dock."""
