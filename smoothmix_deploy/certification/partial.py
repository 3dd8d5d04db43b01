"""`certs.jsonl.partial`: the votes of images that have no certificate yet, so that a stopped run loses none.

Written whole every few seconds and removed when the run is complete. Bound to the first line of its certificate file
(the manifest, with the key): beside any other file it is ignored. A missing or damaged one costs time, never
correctness, as the samples can be drawn again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write_text
from .scheduler import ImageVotes

_EVERY_SECONDS = 5.0


class PartialVotes:
    """The companion of one certificate file."""

    def __init__(self, certificates: Path) -> None:
        self._certificates = certificates
        self._path = certificates.with_name(certificates.name + ".partial")
        self._written = time.monotonic()
        self._every = _EVERY_SECONDS

    def read(self, num_classes: int, n0: int, n: int) -> dict[int, ImageVotes]:
        """Votes by image index; empty if there are none for this certificate file, or they make no sense."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["manifest_sha256"] != self._manifest_digest():
                return {}
            images = [_image_votes(image, num_classes, n0, n) for image in content["images"]]
            return {image.index: image for image in images}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}

    def write_now_and_then(self, votes: Callable[[], list[ImageVotes]]) -> None:
        """Write if the last time is a few seconds ago; longer, where many images in flight make it take long."""
        begun = time.monotonic()
        if begun - self._written > self._every:
            self.write(votes())
            self._every = max(_EVERY_SECONDS, 30 * (time.monotonic() - begun))

    def write(self, votes: list[ImageVotes]) -> None:
        """Write atomically. A failure is no reason to stop: these votes can be drawn again."""
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            content = {"manifest_sha256": self._manifest_digest(), "images": [vars(image) for image in votes]}
            write_text(self._path, json.dumps(content))

    def remove(self) -> None:
        """The run is complete."""
        self._path.unlink(missing_ok=True)

    def _manifest_digest(self) -> str:
        with open(self._certificates, "rb") as file:
            return hashlib.sha256(file.readline()).hexdigest()


def _image_votes(image: dict[str, Any], num_classes: int, n0: int, n: int) -> ImageVotes:
    """ValueError, TypeError, KeyError or AttributeError if it makes no sense."""
    selection, counts = ({int(k): v for k, v in image[name].items()} for name in ("selection", "counts"))
    for drawn, votes, most in ((image["selected"], selection, n0), (image["drawn"], counts, n)):
        whole = all(isinstance(count, int) and count >= 0 for count in (drawn, *votes.values()))
        if not whole or not all(0 <= k < num_classes for k in votes) or not sum(votes.values()) <= drawn <= most:
            raise ValueError("impossible votes")
    if not 0 <= image["seconds"] < math.inf:
        raise ValueError("impossible seconds")
    return ImageVotes(
        int(image["index"]), image["selected"], selection, image["drawn"], counts, float(image["seconds"])
    )
