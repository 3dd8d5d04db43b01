"""Noise as a function of (key, image, sample number): what makes a certificate reproducible and resumable."""
