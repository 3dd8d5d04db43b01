"""Reads ONNX files of anybody's: measured before they are parsed, checked before anything is allocated for them.

Knows nothing about runtimes: what one makes of the file is found out in a child process (`engines.trial`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import BadInput
from .messages import first_line

_MOST_BYTES = (1 << 31) - 1
"""What protobuf takes."""
_MOST_MESSAGES = 250_000
"""Nodes, attributes, tensors, dimensions together: two bytes of a file can become 200 in memory. ResNet-152 has 10,000."""
_MOST_PLAIN_BYTES = 256 << 20
"""Of names and lists of integers: eight times that in memory. Weights are not counted."""
_DEEPEST = 60
_MOST_ELEMENTS = 1 << 29
"""Of a tensor: 2 GB in float32. A sparse one is unpacked to what it declares."""


def load_onnx(path: Path, *, external: bool = False) -> Any:
    """The parsed model. BadInput: none, damaged, a bomb, or weights in other files (no digest would cover them).

    `external`: take such weights in, if they lie in files of the same folder; the model then has them all inside.
    """
    import onnx

    if path.stat().st_size > _MOST_BYTES:
        raise BadInput(f"{path}: {path.stat().st_size >> 20} MB, more than an ONNX file can have")
    data = path.read_bytes()
    try:
        _measure(data, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto.FromString(data)
    except Exception as error:
        raise BadInput(f"{path}: not an ONNX model, or a damaged one ({first_line(error)})") from None
    broken = next((text for text in _texts(model) if isinstance(text, bytes)), None)
    if broken is not None:
        raise BadInput(f"{path}: a name in it is no UTF-8 text ({ascii(broken)[1:60]}): a damaged file")
    for tensor in _tensors(model):
        _check_size(path, tensor)
        if tensor.DESCRIPTOR.name == "TensorProto" and tensor.data_location == onnx.TensorProto.EXTERNAL:
            if not external:
                raise BadInput(
                    f"{path}: its weights lie outside the file ({_location(tensor)}), so no digest would cover them; "
                    f"smx export {path} --allow-external-data puts them inside"
                )
            _take_in(path, tensor)
    return model


def _measure(data: bytes, root: Any) -> None:
    """ValueError for files whose parsed form would be out of proportion. Walks the wire format, allocates nothing."""
    messages = plain = 0
    todo = [(0, len(data), root, 0)]
    while todo:
        position, end, descriptor, depth = todo.pop()
        inner = _fields(descriptor)
        while position < end:
            tag, position = _varint(data, position)
            wire = tag & 7
            if wire == 0:
                _, position = _varint(data, position)
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            elif wire == 2:
                length, position = _varint(data, position)
                if tag >> 3 in inner:
                    part = inner[tag >> 3]
                    if part is None:
                        plain += length
                    else:
                        messages += 1
                        todo.append((position, position + length, part, depth + 1))
                    if messages > _MOST_MESSAGES or plain > _MOST_PLAIN_BYTES or depth > _DEEPEST:
                        raise ValueError("more parts, or parts nested deeper, than any network has")
                position += length
            else:
                raise ValueError(f"wire type {wire}")
            if position > end:
                raise ValueError("cut off")


@lru_cache(maxsize=64)
def _fields(descriptor: Any) -> dict[int, Any]:
    """By number: the type of fields that hold messages, None for other fields that grow when they are parsed."""
    return {
        field.number: field.message_type
        for field in descriptor.fields
        if field.type not in (field.TYPE_BYTES, field.TYPE_FLOAT, field.TYPE_DOUBLE)
    }


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[position]  # IndexError: cut off
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number without end")


def _check_size(path: Path, tensor: Any) -> None:
    dims = list(tensor.dims)
    if min(dims, default=0) < 0 or math.prod(dims) > _MOST_ELEMENTS:
        raise BadInput(f"{path}: a tensor in it says that its shape is {dims[:8]}: a damaged or hostile file")


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")


def _take_in(path: Path, tensor: Any) -> None:
    """Put the bytes that lie in a file of the same folder into the tensor. BadInput for any other place or size."""
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.parent.resolve()
    try:
        file = (folder / entries["location"]).resolve()
        offset = int(entries.get("offset", 0))
        size = math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        length = int(entries.get("length", size))
    except (KeyError, ValueError, OSError) as error:
        raise BadInput(f"{path}: does not say where the weights {tensor.name!r} lie ({first_line(error)})") from None
    if not file.is_relative_to(folder) or not file.is_file():
        raise BadInput(f"{path}: its weights are in {entries['location']!r}, which is no file of the same folder")
    if offset < 0 or not 0 <= length <= size or offset + length > file.stat().st_size:
        raise BadInput(f"{path}: {length} bytes at {offset} of {file.name} are not the weights {tensor.name!r}")
    with open(file, "rb") as source:
        source.seek(offset)
        tensor.raw_data = source.read(length)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT


def _texts(message: Any) -> Iterator[Any]:
    """All strings of a protobuf message; those that are no UTF-8 come as bytes, and break whoever joins them to others."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        values = [value] if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value
        for item in values:
            if field.type == field.TYPE_STRING:
                yield item
            else:
                yield from _texts(item)


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors, sparse ones too, wherever they stand: graphs, nested graphs, attributes, functions."""
    if message.DESCRIPTOR.name in ("TensorProto", "SparseTensorProto"):
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)
