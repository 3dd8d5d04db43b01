"""The statistics of certification: counts and numbers in, bounds and radii out. Imports no torch, reads no file."""
