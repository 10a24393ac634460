"""The package as bytes: what comes out is what went in, or one line says why not."""

import copy
import functools
import hashlib
import random
import tracemalloc
import zlib

from hypothesis import example, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from dnnshifter_ext.package import PackageError, SparseTensor, Variant, read, write
from tests.dnnshifter_ext.package import raw
from tests.dnnshifter_ext.package.arrays import any_arrays, assert_same_bits, pruned

STRUCTURE = '{"nodes": ["ünïcode"]}'


def variant(name='a', seed=0, density=0.1, **tensors):
    weights = pruned((6, 40), density, seed)
    weights[1, weights[1] == 0] = -0.0
    return Variant(name, STRUCTURE, {'conv.weight': weights, 'conv.bias': np.ones(3), **tensors}, {'level': seed})


@functools.cache
def example_package():
    """Two variants that share a tensor; small, because tests go through it byte by byte."""
    shared = np.arange(50)
    return write([variant('level_7', 1, 0.05, index=shared),
                  variant('level_2', 0, 0.1, index=shared, truth=np.ones(9, bool), empty=np.zeros((0, 3)))])


def open_fully(content):
    package = read(content)
    package.verify()
    return package


def refused(content, match=None, **limits):
    with pytest.raises(PackageError, match=match) as caught:
        read(content, **limits).verify()
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


# ---- what went in comes out

def test_variants_come_back():
    variants = [variant('small', 1, empty=np.zeros((2, 0, 3)), scalar=np.array(2.5), truth=np.array([True, False])),
                variant('large', 2, more=pruned((30, 50), 0.2))]
    package = open_fully(write(variants))
    assert [found.name for found in package.variants] == ['small', 'large']
    for given_variant in variants:
        found = package[given_variant.name]
        assert (found.structure(), found.profile) == (STRUCTURE, given_variant.profile)
        assert list(found.tensors) == list(given_variant.tensors)
        assert found.num_bytes == sum(array.nbytes for array in given_variant.tensors.values())
        for name, array in given_variant.tensors.items():
            assert_same_bits(found.dense(name), array)
    weights = variants[0].tensors['conv.weight']
    assert package['small'].tensors['conv.weight'].is_sparse
    assert_same_bits(package['small'].sparse('conv.weight').values, SparseTensor.from_dense(weights).values)
    with pytest.raises(KeyError):
        package['other']
    with pytest.raises(TypeError, match='only float32'):
        package['small'].sparse('scalar')


@settings(max_examples=20)
@given(st.dictionaries(st.text(min_size=1), any_arrays(), max_size=4))
def test_any_tensors_come_back(tensors):
    [found] = open_fully(write([Variant('a', '', tensors, {})])).variants
    assert list(found.tensors) == list(tensors)
    for name, array in tensors.items():
        assert_same_bits(found.dense(name), array)


def test_the_standard_library_reads_it_as_the_documentation_says():
    variants = [variant('a', 0, planes=np.arange(300), half=pruned((10, 30), 0.8), far=pruned((3, 2000), 0.001),
                        rows=pruned((20, 600), 0.2)), variant('b', 1)]
    content = write(variants)
    found = raw.tensors(content)
    for expected in variants:
        for name, array in expected.tensors.items():
            assert_same_bits(found[expected.name][name].astype(array.dtype), array)
    layouts = [entry['layout'] for entry in raw.take_apart(content)[0]['tensors']]
    assert {'plain', 'planes'} < {layout if isinstance(layout, str) else layout['gaps'] for layout in layouts}


def test_variants_are_sorted_by_size_and_then_by_what_they_take():
    names = ['dense', 'sparse', 'small', 'tiny']
    variants = [Variant(name, '', {'w': pruned(shape, density)}, {}) for name, shape, density in zip(
        names, [(20, 30), (20, 30), (10, 30), (5, 5)], [0.9, 0.1, 0.9, 1])]
    for order in (variants, variants[::-1]):
        assert [found.name for found in read(write(order)).variants] == names[::-1]


def test_shared_tensors_are_stored_once():
    weights = pruned((100, 90), 0.3)
    once, twice = (write([Variant(f'v{index}', STRUCTURE, {'w': weights, 'n': np.float32([index])}, {})
                          for index in range(count)]) for count in (1, 2))
    assert len(twice) < len(once) + 150
    # The same bytes in another shape or of another dtype are another tensor; -0.0 is not 0.0.
    zeros = np.zeros((2, 3), np.float32)
    different = {'a': zeros, 'b': zeros.reshape(3, 2), 'c': zeros.view(np.int32), 'd': -zeros}
    found = open_fully(write([Variant('v', '', different, {})])).variants[0]
    for name, array in different.items():
        assert_same_bits(found.dense(name), array)


def test_the_same_variants_give_the_same_bytes():
    assert write([variant('a'), variant('b', 1)]) == write([variant('a'), variant('b', 1)])


def test_no_variants():
    assert open_fully(write([])).variants == ()


@pytest.mark.parametrize('variants, match', [
    ([variant('a'), variant('a', 1)], "two variants 'a'"),
    ([variant('../a')], 'no name of a variant'), ([variant('')], 'no name'), ([variant('.a')], 'no name'),
    ([variant(w=np.zeros(2, np.complex64))], "variant 'a' cannot be packed: tensors of complex64"),
    ([variant(w=np.array([None]))], 'object'),
    ([Variant('a', '', {}, {'x': float('nan')})], 'not JSON compliant'), ([Variant('a', '', {}, {'x': b''})], 'bytes'),
    ([variant(w=np.zeros((1,) * 33))], '33 dimensions'),
])
def test_variants_that_cannot_be_packed(variants, match):
    with pytest.raises(PackageError, match=match):
        write(variants)


# ---- damage

def test_cut_short_at_every_boundary():
    content = example_package()
    for boundary in raw.boundaries(content):
        for end in {max(0, boundary - 1), boundary, boundary + 1}:
            refused(content[:end], 'cut short|not a portfolio package')
    refused(content + b'\0', 'something was added')


def test_cut_short_anywhere():
    content = example_package()
    for _ in range(100):
        refused(content[:random.randrange(len(content))], 'cut short|not a portfolio package')


def flipped(content, bit):
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_flipped_bits():
    content = example_package()
    for bit in random.sample(range(8 * len(content)), 500):
        refused(flipped(content, bit))


@pytest.mark.full
def test_cut_short_anywhere_and_flipped_bits_in_number():
    content = write([variant('a', 0, big=pruned((64, 64, 3, 3), 0.1)), variant('b', 1, dense=np.random.randn(100, 20))])
    generator = random.Random(0)
    for _ in range(1_000):
        refused(content[:generator.randrange(len(content))])
    for _ in range(10_000):
        refused(flipped(content, generator.randrange(8 * len(content))))


def resealed(content):
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def flips_behind_the_checksum(num, generator):
    """With the file's checksum put right, so that the checks behind it are at work. The blocks have their own."""
    content = example_package()
    blocks_start = raw.boundaries(content)[6]
    num_opened = 0
    for _ in range(num):
        bit = generator.randrange(8 * (len(content) - 32))
        damaged = resealed(flipped(content, bit))
        if bit // 8 >= blocks_start:
            refused(damaged, 'checksum is wrong')
        else:
            num_opened += opens_or_is_refused(damaged)
    assert num_opened < num / 10


def opens_or_is_refused(content):
    """Whether it opens: what is consistent cannot be told from what was meant."""
    try:
        package = open_fully(content)
    except PackageError as error:
        assert '\n' not in str(error)
        return False
    return all(found.dense(name).shape == tensor.shape
               for found in package.variants for name, tensor in found.tensors.items())


def test_flipped_bits_behind_the_checksum():
    flips_behind_the_checksum(300, random.Random(1))


@pytest.mark.full
def test_flipped_bits_behind_the_checksum_in_number():
    flips_behind_the_checksum(10_000, random.Random(2))


def test_noise_in_blocks_with_every_checksum_put_right():
    """Each stream in turn: refused, or other values in the same shapes."""
    header, blocks = raw.take_apart(example_package())
    outcomes = []
    for index in range(len([1 for entry in entries(header) for _ in entry['streams']])):
        changed, packed, at, count = copy.deepcopy(header), b'', 0, 0
        for entry in entries(changed):
            block = b''
            for stream in entry['streams']:
                content = blocks[at:at + stream[0]]
                at += stream[0]
                if count == index and stream[1]:
                    content = raw.deflate(np.random.RandomState(index).bytes(stream[1]))
                stream[0] = len(content)
                block += content
                count += 1
            entry['crc32'] = zlib.crc32(block)
            packed += block
        outcomes.append(opens_or_is_refused(raw.put_together(changed, packed)))
    assert any(outcomes) and not all(outcomes)


def entries(header):
    return (*header['structures'], *header['tensors'])


# ---- lies: the checksum of the file is right, the header is not

def lying(change):
    """The example with its header changed in place."""
    header, blocks = raw.take_apart(example_package())
    header = copy.deepcopy(header)
    change(header)
    return raw.put_together(header, blocks)


def test_put_together_again_it_is_fine():
    assert [found.name for found in open_fully(lying(lambda header: None)).variants] == ['level_7', 'level_2']


def sparse_entry(header):
    return next(entry for entry in header['tensors'] if isinstance(entry['layout'], dict))


@pytest.mark.parametrize('change, match', [
    (lambda h: h.clear(), 'expected'),
    (lambda h: h.update(more=1), 'expected'),
    (lambda h: h.update(variants={}), 'a list was expected'),
    (lambda h: h['variants'].append(h['variants'][0]), "two variants 'level_7'"),
    (lambda h: h['variants'][0].update(name='../../etc'), 'no name'),
    (lambda h: h['variants'][0].update(name=7), 'no name'),
    (lambda h: h['variants'][0].update(profile=[]), 'object'),
    (lambda h: h['variants'][0].update(structure=1), '1 is not a number below 1'),
    (lambda h: h['variants'][0].update(structure=-1), 'not a number'),
    (lambda h: h['variants'][0].update(structure=True), 'not a number'),
    (lambda h: h['variants'][0]['tensors'].update(w=99), '99 is not a number'),
    (lambda h: h['tensors'].append(h['tensors'][0]), 'outside of the file'),
    (lambda h: h['tensors'][0].update(shape=[6, 20]), 'streams of|gaps lead out'),
    (lambda h: h['tensors'][0].update(shape=[2**62, 2**62]), 'more than the 4294967296 bytes'),
    (lambda h: h['tensors'][0].update(shape=[-1]), '-1 is not a number'),
    (lambda h: h['tensors'][0].update(shape=[1.5]), '1.5 is not a number'),
    (lambda h: h['tensors'][0].update(shape=[2**62] * 100_000), '100000 dimensions'),
    (lambda h: h['tensors'][0].update(dtype='object'), "'object' are not supported"),
    (lambda h: h['tensors'][0].update(dtype=['float32']), 'damaged'),
    (lambda h: h['tensors'][0].update(dtype='float64'), 'streams of'),
    (lambda h: h['tensors'][0].update(layout='pickle'), "'pickle' is not supported"),
    (lambda h: h['tensors'][0].update(layout='plain'), 'streams of'),
    (lambda h: h['tensors'][0].update(crc32=0), 'checksum is wrong'),
    (lambda h: h['tensors'][0].update(crc32=2**32), 'not a number'),
    (lambda h: h['tensors'][0]['streams'].append([0, 0]), 'streams of'),
    (lambda h: h['tensors'][0]['streams'][2].__setitem__(0, 10**9), 'outside of the file'),
    (lambda h: h['tensors'][0]['streams'][2].__setitem__(0, -1), '-1 is not a number'),
    (lambda h: h['tensors'][0]['streams'][2].__setitem__(1, 10**9), 'cannot inflate'),
    (lambda h: h['tensors'][1]['streams'][0].append(1), 'damaged'),
    (lambda h: h['structures'][0]['streams'][0].__setitem__(1, 20), 'does not inflate to the 20 bytes'),
    (lambda h: sparse_entry(h)['layout'].update(middle_bits=8), 'streams of'),
    (lambda h: sparse_entry(h)['layout'].update(middle_bits=10**9), 'streams of'),
    (lambda h: sparse_entry(h)['layout'].update(num_values=10**9), 'streams of'),
    (lambda h: sparse_entry(h)['layout'].update(gaps=1), 'layout is damaged'),
    (lambda h: sparse_entry(h)['layout'].update(lowest=2**40), 'layout is damaged'),
    (lambda h: sparse_entry(h)['layout'].pop('lowest'), 'expected'),
])
def test_headers_that_lie(change, match):
    refused(lying(change), match)


@pytest.mark.parametrize('text, match', [
    (b'', 'damaged'), (b'{', 'damaged'), (b'[' * 100_000, 'damaged'), (b'\xff', 'damaged'), (b'[]', 'object'),
    (b'{"variants":[],"variants":[],"structures":[],"tensors":[]}', 'the same name twice'),
    (b'{"variants":[],"structures":[],"tensors":[' + b'9' * 5000 + b']}', 'damaged'),
    (b'{"variants":[],"structures":[],"tensors":[],"x":NaN}', 'expected')])
def test_headers_that_are_none(text, match):
    refused(raw.put_together(text, b''), match)


def test_preambles_that_lie():
    header, blocks = raw.take_apart(example_package())
    refused(raw.put_together(header, blocks + bytes(5)), '5 bytes are in no block')
    refused(raw.put_together(header, blocks, version=2), 'version 2 of the format is not supported, only 1')
    refused(raw.put_together(header, blocks, magic=b'\x89PNG\r\n\x1a\n'), 'not a portfolio package')
    refused(raw.put_together(header, blocks, num_header_bytes=2**22 + 1), 'too large')
    refused(raw.put_together(header, blocks, num_header_bytes=10), 'does not inflate')
    refused(raw.put_together(header, blocks, num_packed=2**31), 'too large')
    for content in (b'', b'x', raw.MAGIC, b'PK\x03\x04' * 50):
        refused(content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(['plain', 'planes', 'float32', 'bool', 'a']),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=10)


def replace_somewhere(data, value, draw):
    """Puts `value` in place of one part of nested data, chosen by `draw`."""
    while True:
        keys = list(data) if isinstance(data, dict) else range(len(data))
        key = draw(st.sampled_from(keys))
        if not (isinstance(data[key], (dict, list)) and data[key]) or draw(st.booleans()):
            data[key] = value
            return
        data = data[key]


def hostile_header(data, value):
    header, blocks = raw.take_apart(example_package())
    for _ in range(data.draw(st.integers(1, 3))):
        replace_somewhere(header, copy.deepcopy(value), data.draw)
    opens_or_is_refused(raw.put_together(header, blocks))


@settings(max_examples=60, deadline=None)
@given(st.data(), _JSON)
def test_hostile_headers(data, value):
    hostile_header(data, value)


@pytest.mark.full
@settings(max_examples=2_000, deadline=None)
@given(st.data(), _JSON)
def test_hostile_headers_in_number(data, value):
    hostile_header(data, value)


@settings(max_examples=50)
@given(st.binary(max_size=200))
@example(raw.MAGIC + bytes(60))
def test_noise_is_no_package(content):
    refused(content)


# ---- memory

def peak_bytes(work):
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_a_huge_tensor_in_a_tiny_block_is_refused_before_it_is_allocated():
    """Legitimate as far as DEFLATE goes: a billion zeros take no stream at all."""
    entry = {'dtype': 'float32', 'shape': [2**15, 2**15], 'streams': [[0, 0]] * 6, 'crc32': 0,
             'layout': {'num_values': 0, 'gaps': True, 'lowest': 0, 'middle_bits': 0}}
    header = {'structures': [{'streams': [[0, 0]], 'crc32': 0}], 'tensors': [entry], 'variants': [
        {'name': 'a', 'profile': {}, 'structure': 0, 'tensors': {f't{index}': 0 for index in range(2)}}]}
    content = raw.put_together(header, b'')
    assert peak_bytes(lambda: refused(content, 'would take 8589934592 bytes, 4294967296 at most')) < 300_000
    assert peak_bytes(lambda: refused(content, 'more than the 1000000 bytes', max_variant_bytes=10**6)) < 300_000
    package = read(content, max_variant_bytes=2**33)  # for who wants it
    assert peak_bytes(lambda: package['a'].sparse('t0')) < 300_000


def test_memory_stays_within_what_is_declared():
    weights = pruned((200, 500, 9), 0.05)
    content = write([Variant('a', STRUCTURE, {'w': weights}, {})])
    found = read(content)['a']
    num_values = found.tensors['w'].layout.num_values
    assert peak_bytes(lambda: read(content)) < 100_000
    assert peak_bytes(lambda: found.sparse('w')) < 40 * num_values
    assert peak_bytes(lambda: found.dense('w')) < weights.nbytes + 40 * num_values
    assert 40 * num_values < weights.nbytes
