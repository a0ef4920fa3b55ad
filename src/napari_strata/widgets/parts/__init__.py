"""Widgets that several docks use, and the base class of the docks."""
