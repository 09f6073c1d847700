"""From a raw layout on disk to index rows and ground truth."""
