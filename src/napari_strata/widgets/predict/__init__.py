"""Parts of the Predict dock."""
