"""Objects: the connected pieces of one class, numbered, and a table of their measures."""
