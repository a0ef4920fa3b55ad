"""From annotated images to batches: parts of images, splits, sampling, augmentation."""
