"""Prediction: tiles, the network over them, and where the labels go."""
