"""Training: loop, losses, optimiser, schedule, averaged weights and validation."""
