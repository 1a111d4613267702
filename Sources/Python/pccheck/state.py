"""The state document: how a nest of Python values becomes JSON and named tensors, and back.

Tensors and arrays are stored under readable names; everything else is one JSON document that
refers to them. Every value comes back with the type it had. What cannot be stored exactly is a
``TypeError`` that names the key. Nothing is ever pickled. The layout is specified in
spec/STATE.md.
"""

from __future__ import annotations

from ._core.tensors import TensorEntry
from ._state.decoder import Decoder, RawTensor, TorchValue
from ._state.document import DOCUMENT_KEY, VERSION, document_text, parse_document
from ._state.encoder import INLINE_BYTES_LIMIT, NAME_BYTE_LIMIT, Encoder

__all__ = [
    "DOCUMENT_KEY", "INLINE_BYTES_LIMIT", "NAME_BYTE_LIMIT", "VERSION", "Decoder", "Encoder",
    "RawTensor", "TensorEntry", "TorchValue", "document_text", "parse_document",
]  # fmt: skip
