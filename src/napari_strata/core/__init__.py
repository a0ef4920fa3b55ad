"""Vocabulary of the engine: axes, images, classes, recipes, runs. Never imports torch."""
