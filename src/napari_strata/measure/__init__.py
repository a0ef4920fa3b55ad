"""Measurements on label images."""
