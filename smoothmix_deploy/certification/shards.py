"""`smx certify --shard i/k`: every k-th image of the selection, beginning with the i-th, as a run of its own.

Sequential rules take longest where images are hard, and data sets are often sorted by class, so shards are strided.
A shard's manifest states its own images (start, stop, skip) and which shard it is; `merging` undoes that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import BadInput


@dataclass(frozen=True)
class Shard:
    """Number `index` (from 0) of `of`."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def parse_shard(text: str) -> Shard | None:
    """ "i/k" with 0 <= i < k; None: it is no such text."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(int(match[1]), int(match[2])) if match else None
    return shard if shard and shard.index < shard.of else None


def check_shard(text: str | None, seed: int | None) -> Shard | None:
    """The shard asked for. BadInput unless it is one, and its noise has a key that the others have as well."""
    if text is None:
        return None
    shard = parse_shard(text)
    if shard is None:
        raise BadInput(f"--shard {text}: must be i/k with 0 <= i < k, e.g. 0/4 for the first of four")
    if seed is None:
        raise BadInput(
            f"--shard {text}: needs --seed, the same for every shard: one file has one key. Draw it once: "
            "python -c 'import secrets; print(secrets.randbits(63))'"
        )
    return shard


def shard_of(selection: range, shard: Shard | None) -> range:
    """The shard's images; BadInput if there are none."""
    if shard is None:
        return selection
    if shard.index >= len(selection):
        raise BadInput(f"--shard {shard}: the selection has {len(selection)} images, so this shard has none")
    step = selection.step
    return range(selection.start + shard.index * step, selection.stop, step * shard.of)


def whole_selection(data: dict[str, Any]) -> range:
    """Of a manifest's `data`: the selection of which it is a shard, or its own. ValueError if it cannot be a shard."""
    start, stop, skip = (int(data[name]) for name in ("start", "stop", "skip"))
    if "shard" not in data:
        return range(start, stop, skip)
    shard = parse_shard(str(data["shard"]))
    if shard is None or skip % shard.of or start < shard.index * (skip // shard.of):
        raise ValueError(f"shard {data['shard']} with start {start} and skip {skip}")
    skip //= shard.of
    return range(start - shard.index * skip, stop, skip)
