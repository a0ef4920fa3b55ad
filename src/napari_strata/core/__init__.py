"""Vocabulary of the project: plain values and rules, without torch, files or Qt."""
