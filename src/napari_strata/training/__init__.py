"""Training: the loop, the losses, the optimiser and its schedule, averaged weights and validation of whole images."""
