"""ctypes declarations of pccheck.h, and how the native library is found.

Every call through ctypes releases the interpreter lock, so copies, digests and I/O never run
under it.
"""

from __future__ import annotations

import ctypes as c
import ctypes.util
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InvalidArgument, LibraryNotFound, error_for
from .arguments import whole

ABI_VERSION = 1

OK = 0
BUSY = 5
CORRUPT = 8
NO_CHECKPOINT = 7
TIMEOUT = 19
SUPERSEDED = 23
SKIPPED = 24
REJECTED = 25

ON_BUSY = {"wait": 0, "skip": 1, "fail": 2}
BACKEND = {"auto": 0, "direct": 1, "buffered": 2, "io_uring": 3, "pmem": 4}
CODEC = {"none": 0, "zstd": 1, "planes-zstd": 2}
#: Kinds of a `Place`.
DEVICE_CUDA = 1
PREALLOC = {"default": 0, "fallocate": 1, "zero": 2}

#: Room for the text of an error, the NUL behind it included.
MESSAGE_BYTE_COUNT = 1000
#: How a text ends that had no room; pcc_error_message has all of it.
_CUT_MARK = " …"

#: What decides an interval, by the numbers of PCC_BOUND_*.
BOUNDS = ("budget", "throughput", "failures", "step", "limit")

TICKET_STATES = ("staging", "staged", "durable", "superseded", "skipped", "failed")


def _range_of(kind: Any) -> tuple[int, int]:
    """The least and the largest value of an integer type."""
    bits = 8 * c.sizeof(kind)
    # Only an unsigned one makes a large number of -1.
    is_signed = kind(-1).value < 0
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)


_RANGES: dict[Any, tuple[int, int]] = {
    kind: _range_of(kind) for kind in (c.c_int32, c.c_uint32, c.c_int64, c.c_uint64, c.c_size_t)
}


@dataclass(frozen=True)
class Whole:
    """The type of an integer argument, of which ctypes would drop the bits that do not fit."""

    kind: Any


class Checked:
    """A function of the library that takes no integer which does not fit its argument.

    It looks before the call: whatever is raised while ctypes converts an argument, an interrupt
    too, would become an ArgumentError.
    """

    def __init__(self, function: Any, arguments: list[object]) -> None:
        function.argtypes = [getattr(item, "kind", item) for item in arguments]
        self._function = function
        self._ranges = [
            (index, *_RANGES[item.kind])
            for index, item in enumerate(arguments)
            if isinstance(item, Whole)
        ]

    def __call__(self, *arguments: Any) -> Any:
        for index, low, high in self._ranges:
            whole(arguments[index], "an argument", low, high)
        return self._function(*arguments)


class Structure(c.Structure):
    """A struct whose integers take only what fits them."""

    def __setattr__(self, name: str, value: Any) -> None:
        fields: Any = self._fields_
        kind = dict(fields).get(name)
        if kind in _RANGES:
            value = whole(int(value) if isinstance(value, bool) else value, name, *_RANGES[kind])
        super().__setattr__(name, value)


class Error(Structure):
    """pcc_error"""

    _fields_ = [
        ("code", c.c_int32),
        ("os_errno", c.c_int32),
        ("slot", c.c_int32),
        ("reserved", c.c_int32),
        ("byte_offset", c.c_int64),
        ("message", c.c_char * MESSAGE_BYTE_COUNT),
    ]


class CreateOptions(Structure):
    """pcc_create_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("in_flight", c.c_uint32),
        ("retain", c.c_uint32),
        ("chunk_byte_count", c.c_uint32),
        ("capacity_byte_count", c.c_uint64),
        ("prealloc", c.c_uint32),
        ("rank", c.c_uint32),
        ("world_size", c.c_uint32),
        ("replace_existing", c.c_uint32),
        ("fingerprint", c.c_char_p),
        ("allow_network", c.c_uint32),
        ("reserved", c.c_uint32),
        ("run_uuid", c.c_uint8 * 16),
    ]


class ResizeOptions(Structure):
    """pcc_resize_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("in_flight", c.c_uint32),
        ("retain", c.c_uint32),
        ("allow_network", c.c_uint32),
        ("capacity_byte_count", c.c_uint64),
    ]


class WriterOptions(Structure):
    """pcc_writer_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("on_busy", c.c_uint32),
        ("busy_timeout_ms", c.c_uint32),
        ("backend", c.c_uint32),
        ("snapshot_worker_count", c.c_uint32),
        ("writer_worker_count", c.c_uint32),
        ("pool_byte_count", c.c_uint64),
        ("codec", c.c_uint32),
        ("zstd_level", c.c_int32),
        ("rank", c.c_uint32),
        ("world_size", c.c_uint32),
        ("fingerprint", c.c_char_p),
        ("allow_network", c.c_uint32),
        ("trust_anchor", c.c_uint32),
        ("deep_flush", c.c_uint32),
        ("accepts_group", c.c_uint32),
    ]


class Attempt(Structure):
    """pcc_attempt"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("has_base", c.c_uint32),
        ("attempt", c.c_uint64),
        ("base_attempt", c.c_uint64),
        ("base_step", c.c_uint64),
        ("base_sequence", c.c_uint64),
        ("complete_sequences", c.POINTER(c.c_uint64)),
        ("complete_count", c.c_size_t),
    ]


class Place(Structure):
    """pcc_place"""

    _fields_ = [("device", c.c_uint32), ("ordinal", c.c_int32), ("stream", c.c_uint64)]


class Tensor(Structure):
    """pcc_tensor; the strings and the shape are kept as addresses so that rows can be reused."""

    _fields_ = [
        ("name", c.c_void_p),
        ("dtype", c.c_void_p),
        ("shape", c.c_void_p),
        ("data", c.c_void_p),
        ("byte_count", c.c_uint64),
        ("rank", c.c_uint32),
        ("is_early", c.c_uint32),
        ("place", Place),
    ]


class Metadata(Structure):
    """pcc_metadata"""

    _fields_ = [("key", c.c_char_p), ("value", c.c_char_p)]


class SaveOptions(Structure):
    """pcc_save_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("is_urgent", c.c_uint32),
        ("user_metadata", c.c_char_p),
        ("needs_approval", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class CheckpointInfo(Structure):
    """pcc_checkpoint_info"""

    _fields_ = [
        ("sequence", c.c_uint64),
        ("step", c.c_uint64),
        ("payload_byte_count", c.c_uint64),
        ("stored_byte_count", c.c_uint64),
        ("completed_time", c.c_uint64),
        ("slot", c.c_uint32),
        ("is_anchored", c.c_uint32),
        ("logical_digest", c.c_uint8 * 16),
        ("attempt", c.c_uint64),
    ]


class ReaderOptions(Structure):
    """pcc_reader_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("worker_count", c.c_uint32),
        ("fingerprint", c.c_char_p),
        ("is_forensic", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class CopyOptions(Structure):
    """pcc_copy_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("form", c.c_uint32),
        ("replace_existing", c.c_uint32),
        ("allow_network", c.c_uint32),
        ("is_background", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class LoadOptions(Structure):
    """pcc_load_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("has_step", c.c_uint32),
        ("step", c.c_uint64),
        ("sequence_maximum", c.c_uint64),
    ]


class Destination(Structure):
    """pcc_destination"""

    _fields_ = [
        ("payload_offset", c.c_uint64),
        ("byte_count", c.c_uint64),
        ("data", c.c_void_p),
        ("place", Place),
    ]


class IntervalOptions(Structure):
    """pcc_interval_options"""

    _fields_ = [
        ("struct_size", c.c_uint32),
        ("in_flight", c.c_uint32),
        ("step_seconds", c.c_double),
        ("cost_seconds", c.c_double),
        ("durable_seconds", c.c_double),
        ("budget", c.c_double),
        ("mtbf_seconds", c.c_double),
        ("restart_seconds", c.c_double),
        ("min_steps", c.c_uint64),
        ("max_steps", c.c_uint64),
    ]


class Interval(Structure):
    """pcc_interval"""

    _fields_ = [
        ("steps", c.c_uint64),
        ("bound", c.c_uint32),
        ("reserved", c.c_uint32),
        ("overhead", c.c_double),
        ("goodput", c.c_double),
        ("lost_seconds", c.c_double),
    ]


_P = c.c_void_p
_ERROR = c.POINTER(Error)
_HANDLE = c.POINTER(_P)
_TEXT = c.POINTER(_P)
_I32, _U32, _I64, _U64, _SIZE = map(
    Whole, (c.c_int32, c.c_uint32, c.c_int64, c.c_uint64, c.c_size_t)
)

# Name, result, arguments. A char * that must be freed is declared as an address.
_FUNCTIONS: list[tuple[str, object, list[object]]] = [
    ("pcc_error_message", _P, [_ERROR]),
    ("pcc_status_name", c.c_char_p, [_I32]),
    ("pcc_version", c.c_char_p, []),
    ("pcc_abi_version", c.c_uint32, []),
    ("pcc_create", c.c_int32, [c.c_char_p, c.POINTER(CreateOptions), _ERROR]),
    ("pcc_resize", c.c_int32, [c.c_char_p, c.POINTER(ResizeOptions), _ERROR]),
    ("pcc_writer_open", c.c_int32, [c.c_char_p, c.POINTER(WriterOptions), _HANDLE, _ERROR]),
    (
        "pcc_writer_save",
        c.c_int32,
        [
            _P, _U64, _P, _SIZE, c.POINTER(Metadata), _SIZE,
            c.POINTER(SaveOptions), _HANDLE, _ERROR,
        ],
    ),
    (
        "pcc_payload_byte_count",
        c.c_int32,
        [_P, _SIZE, c.POINTER(Metadata), _SIZE, c.POINTER(c.c_uint64), _ERROR],
    ),
    (
        "pcc_writer_prepare",
        c.c_int32,
        [
            _P, _U64, _P, _SIZE, c.POINTER(Metadata), _SIZE,
            c.POINTER(SaveOptions), _HANDLE, _ERROR,
        ],
    ),
    ("pcc_save_begin", c.c_int32, [_P, _U32, _HANDLE, _ERROR]),
    ("pcc_save_wait", c.c_int32, [_P, _U32, _I64, _ERROR]),
    ("pcc_save_dispose", None, [_HANDLE]),
    ("pcc_writer_approve", c.c_int32, [_P, _P, _ERROR]),
    ("pcc_writer_reject", c.c_int32, [_P, _P, c.c_char_p, _ERROR]),
    ("pcc_writer_rewind", c.c_int32, [_P, _U64, _ERROR]),
    ("pcc_writer_begin_attempt", c.c_int32, [_P, c.POINTER(Attempt), _ERROR]),
    ("pcc_writer_decide", c.c_int32, [_P, _U64, _U32, _ERROR]),
    ("pcc_group_decide", c.c_int32, [c.c_char_p, _TEXT, _ERROR]),
    (
        "pcc_writer_recovered",
        c.c_int32,
        [_P, c.POINTER(CheckpointInfo), c.POINTER(c.c_uint32), _ERROR],
    ),
    ("pcc_writer_stats_json", c.c_int32, [_P, _TEXT, _ERROR]),
    ("pcc_writer_pool", c.c_int32, [_P, _HANDLE, c.POINTER(c.c_uint64), _ERROR]),
    ("pcc_writer_close", c.c_int32, [_P, _ERROR]),
    ("pcc_writer_dispose", c.c_int32, [_HANDLE, _ERROR]),
    ("pcc_writer_abandon", None, [_P]),
    ("pcc_ticket_state", c.c_int32, [_P]),
    ("pcc_ticket_sequence", c.c_uint64, [_P]),
    ("pcc_ticket_superseded_by", c.c_uint64, [_P]),
    ("pcc_ticket_staged_nanoseconds", c.c_uint64, [_P]),
    ("pcc_ticket_durable_nanoseconds", c.c_uint64, [_P]),
    ("pcc_ticket_wait_staged", c.c_int32, [_P, _I64, _ERROR]),
    ("pcc_ticket_wait_early", c.c_int32, [_P, _I64, _ERROR]),
    ("pcc_ticket_hold_stream", c.c_int32, [_P, c.POINTER(Place), _U32, _I64, _ERROR]),
    ("pcc_ticket_wait", c.c_int32, [_P, _I64, _ERROR]),
    ("pcc_ticket_free", None, [_P]),
    ("pcc_reader_open", c.c_int32, [c.c_char_p, c.POINTER(ReaderOptions), _HANDLE, _ERROR]),
    (
        "pcc_reader_list",
        c.c_int32,
        [_P, c.POINTER(CheckpointInfo), _SIZE, c.POINTER(c.c_size_t), _ERROR],
    ),
    ("pcc_reader_report_json", c.c_int32, [_P, _TEXT, _ERROR]),
    (
        "pcc_reader_select_newest",
        c.c_int32,
        [_P, c.POINTER(LoadOptions), c.POINTER(CheckpointInfo), _ERROR],
    ),
    ("pcc_reader_select_next", c.c_int32, [_P, _ERROR, c.POINTER(CheckpointInfo), _ERROR]),
    ("pcc_reader_rejections_json", c.c_int32, [_P, _TEXT, _ERROR]),
    ("pcc_reader_select", c.c_int32, [_P, _U64, c.POINTER(CheckpointInfo), _ERROR]),
    ("pcc_reader_manifest_json", c.c_int32, [_P, _TEXT, c.POINTER(c.c_uint64), _ERROR]),
    ("pcc_reader_load", c.c_int32, [_P, _P, _SIZE, _ERROR]),
    ("pcc_reader_verify", c.c_int32, [_P, _ERROR]),
    ("pcc_reader_verified_byte_count", c.c_uint64, [_P]),
    ("pcc_reader_copy", c.c_int32, [_P, c.c_char_p, c.POINTER(CopyOptions), _ERROR]),
    ("pcc_reader_cancel", None, [_P]),
    ("pcc_sweep", c.c_int32, [c.c_char_p, _ERROR]),
    ("pcc_reader_dispose", None, [_HANDLE]),
    ("pcc_free", None, [_P]),
    (
        "pcc_choose_interval",
        c.c_int32,
        [c.POINTER(IntervalOptions), c.POINTER(Interval), _ERROR],
    ),
]

_library: c.CDLL | None = None
_library_path = ""
# A signal handler may save while the library is loaded.
_library_lock = threading.RLock()


def _renew_lock() -> None:
    """In a child: a thread that exists only in the parent may hold it."""
    global _library_lock
    _library_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _candidates() -> list[str]:
    """Where the library may be, best first."""
    override = os.environ.get("PCCHECK_LIBRARY")
    if override:
        # A path that was asked for is the only one tried: falling through to another library
        # would hide a misspelt one.
        return [override]
    package = Path(__file__).resolve().parents[1]
    places = [
        str(package / "libpccheck.so"),
        # Sources/Python/pccheck in a checkout: the build folder is three levels up.
        str(package.parents[2] / "build" / "lib" / "libpccheck.so"),
    ]
    found = ctypes.util.find_library("pccheck")
    return places + ([found] if found else []) + ["libpccheck.so.1", "libpccheck.so"]


def _open_first() -> tuple[c.CDLL, str]:
    tried = []
    for place in _candidates():
        if os.sep in place and not os.path.exists(place):
            tried.append(f"{place}: no such file")
            continue
        try:
            return c.CDLL(place), place
        except OSError as error:
            tried.append(f"{place}: {error}")
    raise LibraryNotFound(
        "the native library libpccheck.so was not found; build it with `make lib`, or name it "
        "in PCCHECK_LIBRARY. Tried:\n  " + "\n  ".join(tried)
    )


def library() -> c.CDLL:
    """The native library, loaded on first use."""
    global _library, _library_path
    # Without the lock: an interrupt at the end of a `with` leaves it taken.
    if _library is not None:
        return _library
    with _library_lock:
        if _library is not None:
            return _library
        if sys.byteorder != "little":
            raise LibraryNotFound("pccheck runs on little-endian machines only")
        loaded, path = _open_first()
        try:
            for name, result, arguments in _FUNCTIONS:
                function = getattr(loaded, name)
                function.restype = result
                setattr(loaded, name, Checked(function, arguments))
        except AttributeError as error:
            raise LibraryNotFound(
                f"{path} is not a libpccheck.so of this version: {error}"
            ) from None
        version = loaded.pcc_abi_version()
        if version != ABI_VERSION:
            raise LibraryNotFound(
                f"{path} has ABI version {version}; this package needs {ABI_VERSION}: install "
                "the package and the library of one release"
            )
        _library, _library_path = loaded, path
        return loaded


def library_path() -> str:
    """Path of the native library in use."""
    library()
    return _library_path


def exception_from(status: int, error: Error) -> CheckpointError:
    """The exception for a failed call."""
    code = error.code or status
    message = error.message.decode("utf-8", "replace")
    if message.endswith(_CUT_MARK):
        message = take_text(c.c_void_p(library().pcc_error_message(c.byref(error)))) or message
    if not message:
        name = library().pcc_status_name(code)
        message = name.decode() if name else f"status {code}"
    return error_for(
        code,
        message,
        slot=error.slot if error.slot >= 0 else None,
        byte_offset=error.byte_offset if error.byte_offset >= 0 else None,
        errno=error.os_errno or None,
    )


def check(status: int, error: Error) -> None:
    """Raises when a call failed."""
    if status != OK:
        raise exception_from(status, error)


def take_text(text: c.c_void_p) -> str:
    """Copies a string that the library returned, and frees it."""
    if not text.value:
        return ""
    try:
        return c.string_at(text.value).decode("utf-8", "surrogateescape")
    finally:
        library().pcc_free(text)


def encode_path(path: str | os.PathLike[str]) -> bytes:
    """A path as the bytes that the operating system sees, which are UTF-8."""
    encoded = os.fsencode(path)
    shown = os.fsdecode(encoded)
    if b"\0" in encoded:
        raise InvalidArgument(f"the path {shown!r} contains a NUL byte; give one without")
    try:
        encoded.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"the path {encoded!r} is not UTF-8; rename the file, or give a symbolic link with "
            "another name"
        ) from None
    return encoded


def encode_text(text: str | None, what: str, limit: int) -> bytes | None:
    """A string argument as UTF-8, with its limit checked where the message can name it."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"{what} is of type {type(text).__qualname__}, expected a text")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{what} has half a surrogate pair at character {error.start}; give text that UTF-8 "
            "can hold"
        ) from None
    if b"\0" in encoded:
        raise InvalidArgument(f"{what} must not contain a NUL character")
    if len(encoded) > limit:
        raise InvalidArgument(f"{what} has {len(encoded)} bytes of UTF-8; at most {limit} fit")
    return encoded
