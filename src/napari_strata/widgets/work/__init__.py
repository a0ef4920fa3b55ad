"""Work: threads, and the worker's process with its client."""
