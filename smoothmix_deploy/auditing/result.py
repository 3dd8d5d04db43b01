"""What an audit found, image by image and in sum; and its file, a line an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import Stopped
from ..files import to_json
from .judge import Trial

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ImageAudit:
    """One image. `outside` ends at the first flip: larger balls contain it."""

    index: int
    prediction: int
    radius: float
    inside: Trial
    outside: Sequence[Trial]
    adversarial: str | None
    """Where the adversarial image was saved (float32 [C, H, W]); None: no flip inside."""

    @property
    def smallest_flip(self) -> float | None:
        """The smallest multiple of the radius, of those tried, within which a flip was found."""
        return min((trial.multiple for trial in (self.inside, *self.outside) if trial.flipped), default=None)

    @property
    def accusation(self) -> str:
        """One line about the flip inside."""
        t = self.inside
        return (
            f"image {self.index}: certified as class {self.prediction} within {self.radius:.6g}, but at distance "
            f"{t.distance:.6g} class {t.rival} has {t.rival_votes} votes and class {self.prediction} {t.claimed_votes} "
            f"of {t.n} (p = {t.p_value:.1e}); saved as {self.adversarial}"
        )

    def record(self) -> dict[str, Any]:
        """A line of the audit file."""
        return {"kind": "audited", **asdict(self), "smallest_flip": self.smallest_flip}


@dataclass(frozen=True)
class AuditResult:
    """A finished audit. `flips` is what matters: an honest, true certificate gives none."""

    path: Path
    certs: Path
    images: Sequence[ImageAudit]
    eligible: int
    """Certificates in the file with a radius above 0."""
    outside: Sequence[float]
    alpha: float
    seconds: float

    @property
    def flips(self) -> list[ImageAudit]:
        """Images with a flip inside their certified radius."""
        return [image for image in self.images if image.inside.flipped]

    def flipped_within(self, multiple: float) -> int:
        """How many images have a flip within `multiple` radii."""
        return sum(image.smallest_flip is not None and image.smallest_flip <= multiple for image in self.images)

    @property
    def toothless(self) -> bool:
        """No flip anywhere: the attack may be too weak to say anything."""
        return not any(image.smallest_flip is not None for image in self.images)

    def record(self) -> dict[str, Any]:
        """For --json."""
        return {
            "path": str(self.path),
            "certs": str(self.certs),
            "images": len(self.images),
            "eligible": self.eligible,
            "alpha": self.alpha,
            "flips_inside": len(self.flips),
            "flipped_within": {f"{multiple:g}": self.flipped_within(multiple) for multiple in self.outside},
            "toothless": self.toothless,
            "seconds": self.seconds,
            "results": [image.record() for image in self.images],
        }


class AuditFile:
    """An append-only file of whole, flushed lines. Use as a context manager."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(path, "xb")  # noqa: SIM115 - closed in __exit__
        self.write({"kind": "audit", "format_version": FORMAT_VERSION, **manifest})

    def write(self, record: dict[str, Any]) -> None:
        """Append a line. Stopped if the file system refuses it."""
        try:
            self._file.write((to_json(record) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise Stopped(f"{self.path}: cannot write ({error.strerror}); the lines so far are kept") from None

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
