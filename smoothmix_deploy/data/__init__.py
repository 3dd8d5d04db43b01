"""Image sets by name: [C, H, W] float32 in [0, 1] with integer labels. Knows nothing about models or noise."""

from .image_set import ImageSet, InMemorySet, LazySet
from .load import DATA_NAMES, data_info, load_data, public_name, select, stored_spec

__all__ = [
    "DATA_NAMES",
    "ImageSet",
    "InMemorySet",
    "LazySet",
    "data_info",
    "load_data",
    "public_name",
    "select",
    "stored_spec",
]
