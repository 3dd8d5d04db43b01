"""`smx certificate`: one page for people, of one image or of a whole file; what is proved, about what, and how to check it.

Nothing is on the page that `smx verify` did not find to follow from the file's votes. Everything from the file is
escaped; the page loads nothing from anywhere. No torch, unless a data set's reader brings it.
"""

from __future__ import annotations

import base64
import io
import math
import shlex
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..certificates import Certificate, CertificateFile, Manifest
from ..certification.commitment import CommittedKey
from ..certification.verify import checked
from ..errors import BadInput
from ..files import check_writable, write_text
from ..rules import rule_label
from ..summary import certified_accuracy, summarise, usual_radii

if TYPE_CHECKING:
    from ..data import ImageSet

_MOST_CLASSES = 10


def certificate(
    certs: Path | str,
    *,
    out: Path | str,
    index: int | None = None,
    data: str | None = None,
    data_root: Path | str | None = None,
    key: Path | str | None = None,
) -> Path:
    """Verify `certs` and write the page of image `index` (None: of all images) to `out`.

    With `data`, which must be the set that was certified, the image is shown. `key`: the public key that must have signed
    the file. CheckFailed for a file that does not verify; BadInput: no such image, or one that the data do not have.
    """
    path, out = Path(certs), Path(out)
    check_writable(out, "--out")
    if out.absolute() == path.absolute():
        raise BadInput(f"--out {out}: is the certificate file; choose another name")
    content, terms = checked(path, key)
    images = None
    if data is not None:
        from ..certification.rerun import certified_images

        images = certified_images(content, data, data_root)
    values = _of_all(content) if index is None else _of_one(content, index, images)
    _render(out, {**values, **_of_file(content, terms.committed, key)})
    return out


def _of_file(content: CertificateFile, committed: CommittedKey | None, key: Path | str | None) -> dict[str, Any]:
    m = content.manifest
    name = shlex.quote(content.path.name)
    commands = [f"smx verify {name}" + (f" --key {shlex.quote(Path(key).name)}" if key is not None else "")]
    commands.append(f"smx verify {name} --artefact ARTEFACT --rerun 3")
    if committed is not None:
        commands.append(f"smx verify {name} --commitment {committed.commitment} --challenge TEXT")
    return {
        "m": m,
        "content": content,
        "committed": committed,
        "key_checked": key is not None,
        "file": content.path.name,
        "rule": rule_label(m.rule, m.rule_parameters),
        "commands": commands,
        "down": down,
    }


def _of_one(content: CertificateFile, index: int, images: ImageSet | None) -> dict[str, Any]:
    c = next((line for line in content.certificates if line.index == index), None)
    if c is None:
        raise BadInput(f"--index {index}: {content.path} has no certificate for this image")
    m = content.manifest
    voted = {**c.counts, **({} if c.reuse is None else c.reuse["counts"])}
    classes = sorted(voted, key=lambda k: (-c.counts.get(int(k), 0), int(k)))[:_MOST_CLASSES]
    return {
        "c": c,
        "line": content.certificates.index(c) + 2,
        "answer": class_name(m, c.prediction),
        "label": class_name(m, c.label),
        "votes": [(class_name(m, int(k)), c.selection_counts.get(int(k), 0), c.counts.get(int(k), 0)) for k in classes],
        "left_out": len(voted) - len(classes),
        "picture": None if images is None else _png(images.image(index)),
        "scale": _scale(c, m),
    }


def _of_all(content: CertificateFile) -> dict[str, Any]:
    rows, m = content.certificates, content.manifest
    radii = usual_radii(max((c.radius for c in rows if c.correct), default=0.0))
    return {
        "c": None,
        "picture": None,
        "summary": summarise(rows),
        "correct": sum(c.correct for c in rows),
        "certified": list(zip(radii, certified_accuracy(rows, radii), strict=True)),
        "expected_wrong": f"{m.alpha * len(rows):.3g}",
    }


def down(value: float, digits: int = 4) -> str:
    """Rounded down: never more than was proved."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR))


def class_name(manifest: Manifest, k: int) -> str:
    """`5`, or `5 (cat)` where the classes have names."""
    names = manifest.class_names
    name = names[k] if names is not None and 0 <= k < len(names) else str(k)
    return str(k) if name == str(k) else f"{k} ({name})"


def _scale(c: Certificate, m: Manifest) -> str | None:
    """What the radius means for pixels, where the images' shape is known."""
    shape = m.data.get("shape")
    if not c.radius > 0 or not isinstance(shape, list) or not all(isinstance(s, int) and s > 0 for s in shape):
        return None
    each = 255 * c.radius / math.sqrt(math.prod(shape))
    one = f"one value by up to {down(255 * c.radius, 0)}, or " if c.radius <= 1 else ""
    return f"{one}all {math.prod(shape)} values by up to {down(each, 2)} each, in levels of 255"


def _png(image_CHW: np.ndarray) -> str:
    from PIL import Image

    levels = np.rint(np.moveaxis(image_CHW, 0, 2) * 255).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels[:, :, :3]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _render(out: Path, values: dict[str, Any]) -> None:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("smoothmix_deploy", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )  # fmt: skip
    page = environment.get_template("certificate.html").render(**values)
    write_text(out, page)
