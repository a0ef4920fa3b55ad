"""Parts: widgets that several docks have, and the dock itself."""
