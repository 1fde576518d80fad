"""The trainer: configuration, steps, devices, checkpoints, the loop."""
