"""Data: sources, preprocessing, augmentation, pipelines."""
