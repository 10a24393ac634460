"""A package taken apart and put together with the standard library alone, as docs/portfolio_format.md says."""

import hashlib
import json
import struct
import zlib

import numpy as np

PREAMBLE = struct.Struct('<8sIIIQ')
MAGIC = b'\x89DNNS\r\n\x1a'


def deflate(content, level=9):
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def inflate(content):
    return zlib.decompress(content, -15) if content else b''


def take_apart(content):
    """(the header as data, all blocks in one)"""
    magic, version, packed, num_bytes, total = PREAMBLE.unpack_from(content)
    assert (magic, version, total) == (MAGIC, 1, len(content))
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]
    header = inflate(content[PREAMBLE.size:PREAMBLE.size + packed])
    assert len(header) == num_bytes
    return json.loads(header), content[PREAMBLE.size + packed:-32]


def put_together(header, blocks, *, version=1, magic=MAGIC, num_header_bytes=None, num_packed=None):
    """A file whose checksum is right, whatever the rest is. `header`: data, or the bytes of JSON text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = deflate(text)
    total = PREAMBLE.size + len(packed) + len(blocks) + 32
    preamble = PREAMBLE.pack(magic, version, len(packed) if num_packed is None else num_packed,
                             len(text) if num_header_bytes is None else num_header_bytes, total)
    content = preamble + packed + blocks
    return content + hashlib.sha256(content).digest()


def boundaries(content):
    """Where one part of the file ends and the next begins: fields of the preamble, the header, each stream, the end."""
    header, _ = take_apart(content)
    at = PREAMBLE.size + PREAMBLE.unpack_from(content)[2]
    found = [0, 8, 12, 16, 20, PREAMBLE.size, at]
    for entry in (*header['structures'], *header['tensors']):
        for packed, _ in entry['streams']:
            at += packed
            found.append(at)
    assert at == len(content) - 32
    return found


def tensors(content):
    """Variant -> name -> array, element by element: slow, and independent of the package's own reader."""
    header, blocks = take_apart(content)
    parts, at = [], 0
    for entry in (*header['structures'], *header['tensors']):
        streams = []
        start = at
        for packed, num_bytes in entry['streams']:
            streams.append(inflate(blocks[at:at + packed]))
            assert len(streams[-1]) == num_bytes
            at += packed
        assert zlib.crc32(blocks[start:at]) == entry['crc32']
        parts.append(streams)
    parts = parts[len(header['structures']):]
    return {variant['name']: {name: tensor(header['tensors'][index], parts[index])
                              for name, index in variant['tensors'].items()} for variant in header['variants']}


def tensor(entry, streams):
    dtype, shape, layout = np.dtype(entry['dtype']).newbyteorder('<'), entry['shape'], entry['layout']
    if layout == 'plain':
        return np.frombuffer(streams[0], dtype).reshape(shape)
    if layout == 'planes':
        content, size = b''.join(streams), len(streams[1])
        return np.frombuffer(b''.join(content[index::size] for index in range(size)), dtype).reshape(shape)
    size, num = int(np.prod(shape)), layout['num_values']
    positions, rows, top, middle, low, flips = streams
    elements = [0] * size
    sign, at = 0, 0
    for flip in (*positions_of_gaps(flips), size):
        elements[at:flip] = [sign << 31] * (flip - at)
        at, sign = flip, 1 - sign
    places = positions_of_gaps(positions) if layout['gaps'] else [
        position for position in range(size) if bit(positions, position)]
    for index, position in enumerate(places):
        value = top[index] + layout['lowest']
        bitmap_bytes = -(-num // 8)
        for number in range(layout['middle_bits']):
            value = value << 1 | bit(middle[number * bitmap_bytes:], index)
        value = value << 16 | int.from_bytes(low[2 * index:2 * index + 2], 'little')
        if rows:
            value += rows[position // (size // shape[0])] << 20
        sign = bit(middle[layout['middle_bits'] * bitmap_bytes:], index)
        elements[position] = value % 2**32 | sign << 31
    return np.array(elements, np.uint32).view(np.float32).reshape(shape)


def positions_of_gaps(stream):
    found, at = [], 0
    for gap in stream:
        at += gap
        if gap < 255:
            found.append(at)
            at += 1
    return found


def bit(bitmap, index):
    return bitmap[index // 8] >> index % 8 & 1
