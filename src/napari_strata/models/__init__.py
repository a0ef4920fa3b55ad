"""Trained models: the model file, ensembles, predictors and the device."""
