"""Base classifiers: architectures by name, and the run folders that hold trained ones."""

from .build import ARCHITECTURES, BaseClassifier, build_model

__all__ = ["ARCHITECTURES", "BaseClassifier", "build_model"]
