"""Training base classifiers: one pure step function a method, one loop for all."""
