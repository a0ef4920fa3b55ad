"""Pages: what a folder of ours holds as one HTML file, made without torch, that opens without a network."""
