"""Predict dock."""
