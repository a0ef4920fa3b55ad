"""Exporters: models as files for other programs."""
