"""Read compressed files from beginning to end, in constant memory; one that is cut off is found."""

from __future__ import annotations

import bz2
import gzip
import lzma
from io import BufferedReader, RawIOBase
from typing import Any, BinaryIO, cast

from batchrun.errors import InputError
from batchrun.files.extras import needs_extra
from batchrun.prompts.forms import Packing

_BLOCK_BYTES = 1 << 17
_ZSTD_BYTES = 1 << 10
"""Read at once: a block of 128 KiB may be packed into four bytes."""


def unpacked(file: BinaryIO, packing: Packing, path: str) -> BinaryIO:
    """The plain bytes of a compressed file.

    Args:
        file: The file, at its beginning.
        packing: How it is compressed.
        path: Its path in messages.

    Raises:
        InputError: a library is missing; or, as it is read, the file is not a complete one of its kind.
    """
    match packing:
        case Packing.GZIP:
            plain: Any = gzip.GzipFile(fileobj=file)
        case Packing.BZIP2:
            plain = bz2.BZ2File(file)
        case Packing.XZ:
            plain = lzma.LZMAFile(file)  # noqa: SIM115 - the file is the caller's
        case Packing.ZSTD:
            plain = _ZstdFile(file, path)
    return BufferedReader(_Checked(plain, packing, path), _BLOCK_BYTES)


class _Checked(RawIOBase):
    """A compressed file whose faults are errors of the input."""

    def __init__(self, plain: Any, packing: Packing, path: str) -> None:
        super().__init__()
        self._plain = plain
        self._packing = packing
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any, /) -> int:
        try:
            return cast("int", self._plain.readinto(into))
        except InputError:
            raise
        except Exception as error:  # each library has exceptions of its own
            raise InputError(
                f"{self._path} is not a complete {self._packing} file: {error}", "create it again"
            ) from error


class _ZstdFile:
    """A file of zstd frames. The library's own reader does not report a frame that is cut off."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        with needs_extra(f"{path} is compressed with zstd"):
            import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._packed = b""
        self._plain = memoryview(b"")

    def readinto(self, into: Any) -> int:
        while not self._plain:
            if not self._packed:
                self._packed = self._file.read(_ZSTD_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._unpack()
        count = min(len(into), len(self._plain))
        into[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _unpack(self) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._plain = memoryview(self._frame.decompress(self._packed))
        self._packed = b""
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._frame = None
