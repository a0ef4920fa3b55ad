"""Parts of the Train dock."""
