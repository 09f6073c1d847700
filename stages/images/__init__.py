"""From a file's bytes to views: decoding policy, geometry, augmentation, loading."""
