"""Data sets: readers, splits, checks, training transforms, COCO evaluation, the demo set."""
