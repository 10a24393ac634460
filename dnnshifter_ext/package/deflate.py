"""Raw DEFLATE (RFC 1951) of one stream of bytes, never beyond its declared size; and checksums."""

from __future__ import annotations

import zlib

from dnnshifter_ext.package.errors import PackageError

try:
    from isal import isal_zlib as _inflater  # twice as fast at Huffman codes, and at checksums
except ImportError:
    _inflater = zlib

LIBRARY = _inflater.__name__
# A match is of 258 bytes at most, and takes two bits at least.
MAX_RATIO = 1032
_RAW = -zlib.MAX_WBITS
_MEMORY = 9


def deflate(stream: bytes) -> bytes:
    """The shortest of what zlib makes with matches, with Huffman codes alone, and by storing. Nothing for nothing."""
    if not stream:
        return b''
    ways = ((9, zlib.Z_DEFAULT_STRATEGY), (9, zlib.Z_HUFFMAN_ONLY), (0, zlib.Z_DEFAULT_STRATEGY))
    return min((_deflate(stream, level, strategy) for level, strategy in ways), key=len)


def huffman_size(stream: bytes) -> int:
    """Bytes with Huffman codes alone: quick, and close to the entropy of independent bytes."""
    return len(_deflate(stream, 9, zlib.Z_HUFFMAN_ONLY))


def inflate(packed: bytes | memoryview, size: int) -> bytes:
    """Exactly `size` bytes; PackageError for anything else. No more than that is allocated, whatever `packed` says."""
    if not size and not packed:
        return b''
    inflater = _inflater.decompressobj(_RAW)
    try:
        stream = inflater.decompress(packed, size + 1)  # 0 would mean without a limit
    except (zlib.error, _inflater.error) as error:
        raise PackageError(f'a block is not DEFLATE ({error})') from error
    if len(stream) != size or not inflater.eof or inflater.unused_data:
        raise PackageError(f'a block does not inflate to the {size} bytes declared')
    return stream


def crc32(content: bytes | memoryview) -> int:
    """As zlib's."""
    return _inflater.crc32(content)


def _deflate(stream: bytes, level: int, strategy: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, _RAW, _MEMORY, strategy)
    return compressor.compress(stream) + compressor.flush()
