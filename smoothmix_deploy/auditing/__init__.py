"""Attacks on smoothed classifiers, to put certificates to the test: `smx audit`."""
