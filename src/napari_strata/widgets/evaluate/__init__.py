"""Parts of the Evaluate dock."""
