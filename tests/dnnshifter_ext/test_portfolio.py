import io
import sys

from matplotlib.text import Text
import numpy as np
import pandas as pd
import pytest

from dnnshifter_ext.portfolio import Row, choose, figure, text_table, to_frame
from dnnshifter_ext.profiler import Latency, PeakMemory, Profile, Speedup
from experiments.replicate_table import to_markdown


def profile_of(accuracy, num_params, latency_ms, over=None, batch_sizes=(1, 128), backends=('eager',), changed=0):
    """A model whose batches take latency_ms an image; `over`: what the models before it took."""
    speedups = {name: Speedup(ms / latency_ms, 0.99 * ms / latency_ms, 1.01 * ms / latency_ms)
                for name, ms in (over or {}).items()}
    return Profile(
        accuracy=accuracy, changed_predictions=changed, num_examples=100, num_params=num_params,
        num_nonzero_params=num_params // 2, num_flops=30 * num_params, size_bytes=4 * num_params,
        latencies=tuple(Latency('cpu', 'x86_64 AVX2', backend, n, 2, 5, latency_ms * n, latency_ms * n * 1.5, speedups)
                        for backend in backends for n in batch_sizes),
        peak_memory=tuple(PeakMemory('cpu', n, 2**20 * n) for n in batch_sizes))


def row(level, accuracy, num_params, latency_ms, slowness=1, hybrid=None, **kwargs):
    """A level of a network of 2**20 weights that takes 8 ms fused and 10 ms unfused, on a machine that is so slow.

    hybrid: its number of sparse layers, parameters, and latency in ms.
    """
    unfused_ms, fused_ms, pruned_ms = 10 * slowness, 8 * slowness, latency_ms * slowness
    return Row(
        level, 2.0**level, profile_of(accuracy, 2**20, unfused_ms, **kwargs),
        profile_of(accuracy, 2**20, fused_ms, {'unfused': unfused_ms}, **kwargs),
        profile_of(accuracy, num_params, pruned_ms, {'unfused': unfused_ms, 'fused': fused_ms}, **kwargs), 3 * 2**18,
        12.5, 1e-7, hybrid and profile_of(
            accuracy, hybrid[1], hybrid[2] * slowness,
            {'unfused': unfused_ms, 'fused': fused_ms, 'pruned': pruned_ms}, **kwargs), hybrid[0] if hybrid else 0)


def rows():
    return [row(2, 0.85, 2**18, 4, changed=3), row(0, 0.9, 2**20, 8), row(1, 0.8, 2**19, 5),
            row(3, 0.8999, 2**20, 8.16)]


def test_frame_has_one_line_per_level_and_units_in_its_names():
    frame = to_frame(rows())
    assert frame['level'].tolist() == [0, 1, 2, 3]
    assert frame['size_mib'].tolist() == [4, 2, 1, 4]
    assert frame['params_stored'].tolist() == [2**20, 2**19, 2**18, 2**20]
    assert frame['params_nonzero'].tolist() == [2**19, 2**18, 2**17, 2**19]
    assert frame['num_flops'].tolist() == [30 * 2**20, 30 * 2**19, 30 * 2**18, 30 * 2**20]
    assert frame['changed_predictions'].tolist() == [0, 0, 3, 0]
    assert frame['cpu_latency_p50_ms_batch_128_unfused'].tolist() == [1280] * 4
    assert frame['cpu_latency_p50_ms_batch_128_fused'].tolist() == [1024] * 4
    assert frame['cpu_latency_p50_ms_batch_128_pruned'].tolist() == [8 * 128, 5 * 128, 4 * 128, 8.16 * 128]
    assert frame['cpu_latency_p95_ms_batch_1_pruned'].tolist() == [12, 7.5, 6, 12.24]
    np.testing.assert_allclose(frame['cpu_speedup_batch_1_over_fused'], [1, 1.6, 2, 8 / 8.16])
    np.testing.assert_allclose(frame['cpu_speedup_batch_1_over_unfused'], [1.25, 2, 2.5, 10 / 8.16])
    assert frame['cpu_speedup_batch_1_over_fused_is_gain'].tolist() == [False, True, True, False]
    assert frame['cpu_speedup_batch_1_over_unfused_is_gain'].all()
    assert frame['cpu_peak_memory_mib_batch_128'].tolist() == [128] * 4
    assert set(frame['cpu_num_threads']) == {2} and set(frame['cpu_hardware']) == {'x86_64 AVX2'}
    assert frame['pareto_optimal'].tolist() == [True, False, True, False]
    assert frame['near_duplicate_of'].tolist() == [pd.NA, pd.NA, pd.NA, 0]
    assert set(frame['search_efficiency']) == {0.5}
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)), dtype={'near_duplicate_of': 'Int64'})
    pd.testing.assert_frame_equal(again, frame)


def test_levels_timed_in_a_slow_hour_are_compared_fairly():
    """Level 1 is faster than level 0, and level 2 slower; the machine was not as fast each time."""
    frame = to_frame([row(0, 0.9, 2**18, 4), row(1, 0.8, 2**18, 3, slowness=2), row(2, 0.7, 2**18, 5, slowness=0.5)])
    np.testing.assert_allclose(frame['comparable_latency_ms'], [4, 3, 5])
    assert frame['pareto_optimal'].tolist() == [True, True, False]
    assert set(frame['search_efficiency']) == {2 / 3}
    assert frame['cpu_latency_p50_ms_batch_1_pruned'].tolist() == [4, 6, 2.5]  # as measured


def chosen(*variants):
    """(optimal, near-duplicate of) for variants of (accuracy in points, size, latency)."""
    accuracy, size, latency = np.array(variants, dtype=float).T
    optimal, near_duplicate_of = choose(accuracy / 100, size, latency)
    return optimal.tolist(), near_duplicate_of.tolist()


def test_optimal_is_what_nothing_beats():
    optimal, twins = chosen((90, 10, 10), (80, 5, 10), (80, 10, 5), (70, 7, 7), (70, 20, 20), (60, 6, 10), (60, 5, 5))
    assert optimal == [True, True, True, True, False, False, True]
    assert twins == [-1] * 7


@pytest.mark.parametrize('accuracy, size, latency, is_optimal, is_twin', [
    (90.0, 10, 10, False, True),
    (89.95, 10, 10, False, True),
    (89.95, 9.85, 9.6, False, True),     # 1.5 % smaller and 4 % faster
    (89.95, 10.15, 10.4, False, True),
    (89.8, 9.85, 9.6, False, False),     # 0.2 points less: beaten, but no near-duplicate
    (89.95, 11, 10, False, False),       # alike in two criteria, and worse in the third
    (89.95, 10, 12, False, False),
    (89.95, 9.7, 10, True, False),       # 3 % smaller
    (89.95, 10, 9.4, True, False),       # 6 % faster
    (90.05, 12, 12, True, False),        # more accurate, if larger and slower
])
def test_tolerances(accuracy, size, latency, is_optimal, is_twin):
    optimal, twins = chosen((90, 10, 10), (accuracy, size, latency))
    assert optimal == [True, is_optimal] and twins == [-1, 0 if is_twin else -1]


def test_of_near_duplicates_the_more_accurate_then_the_smaller_stays():
    assert chosen((89.95, 9.9, 9.9), (90, 10, 10)) == ([False, True], [1, -1])
    assert chosen((90, 10, 9.9), (90, 9.9, 10)) == ([False, True], [1, -1])


def test_a_chain_of_small_differences_does_not_lose_the_fast_ones():
    """Each is 4 % faster than the one before it: every other one is needed."""
    variants = [(90 - k, 10, 10 * 0.96**k) for k in range(6)]
    assert chosen(*variants)[0] == [True, False, True, False, True, False]


def test_noise_puts_nothing_on_the_front():
    """Sizes and models alike, latencies with 2 % of noise: only the most accurate one is worth keeping."""
    noise = np.random.default_rng(0).normal(1, 0.01, 20).clip(0.98, 1.02)
    optimal, _ = chosen(*((90 - k, 10, 10 * factor) for k, factor in enumerate(noise)))
    assert optimal == [True] + [False] * 19


def test_text_table():
    assert text_table(to_frame(rows())).splitlines() == [
        '              accuracy %               parameters               MiB            sparse',
        'level  ratio  sparse  pruned  changed  paper  stored  non-zero  dense  hybrid  layers  FLOPs  conv. ms',
        '-' * 107,
        '    0    1.0   90.00   90.00        0   786k   1.05M      524k   4.00    4.00       0  31.5M      12.5    *',
        '    1    2.0   80.00   80.00        0   786k    524k      262k   2.00    2.00       0  15.7M      12.5',
        '    2    4.0   85.00   85.00        3   786k    262k      131k   1.00    1.00       0  7.86M      12.5    *',
        '    3    8.0   89.99   89.99        0   786k   1.05M      524k   4.00    4.00       0  31.5M      12.5  = 0',
        '',
        'Latency of the pruned models, all layers dense, on cpu (x86_64 AVX2, 2 threads), ms per batch',
        '       batch 1       speed-up over     batch 128     speed-up over',
        'level    p50    p95  unfused    fused    p50    p95  unfused    fused',
        '-' * 69,
        '    0   8.00   12.0     1.25  no gain   1024   1536     1.25  no gain',
        '    1   5.00   7.50     2.00     1.60    640    960     2.00     1.60',
        '    2   4.00   6.00     2.50     2.00    512    768     2.50     2.00',
        '    3   8.16   12.2     1.23  no gain   1044   1567     1.23  no gain',
        '',
        'Search efficiency: 2 of 4 variants are optimal (50.0 %).',
        '*        optimal: no optimal variant of at least its accuracy is at most 5 % slower',
        '         (batch 1, CPU) and at most 2 % larger; hybrid where there are sparse layers',
        '= K      near-duplicate of level K: within these, and 0.1 points of accuracy',
        'paper    what the published rule would store: it only removes all-zero filters, with their constants',
        'changed  test images whose predicted class is not that of the sparse model',
        'hybrid   layers that are faster so, measured with 16 images, keep and read non-zero weights only',
        'fused    the sparse model with batch norms in the convolutions; unfused: as trained',
        'no gain  the 95 % confidence interval of the speed-up does not lie above 1.02',
        'FLOPs    of one image with all layers dense, a multiply-add being 2',
    ]


def test_hybrids_have_their_columns_and_their_table_and_decide_what_is_optimal():
    levels = [row(0, 0.9, 2**20, 8), row(1, 0.8, 2**20, 8, hybrid=(3, 2**19, 2))]
    frame = to_frame(levels)
    assert frame['size_mib'].tolist() == [4, 4] and frame['size_mib_hybrid'].tolist() == [4, 2]
    assert frame['num_sparse_layers'].tolist() == [0, 3]
    assert frame['cpu_latency_p50_ms_batch_128_hybrid'].tolist() == [8 * 128, 2 * 128]
    assert frame['cpu_speedup_batch_1_hybrid_over_fused'].tolist() == [1, 4]
    assert frame['cpu_speedup_batch_1_hybrid_over_pruned'].tolist()[1] == 4
    assert frame['comparable_latency_ms'].tolist() == [8, 2]
    assert frame['pareto_optimal'].tolist() == [True, True]
    assert to_frame([levels[0], row(1, 0.8, 2**20, 8)])['pareto_optimal'].tolist() == [True, False]
    lines = text_table(frame).splitlines()
    assert lines[4].split()[8:11] == ['4.00', '2.00', '3']
    [table] = [number for number, line in enumerate(lines) if line.startswith('Latency of the pruned models, hybrid,')]
    assert lines[table + 5].split() == ['1', '2.00', '3.00', '5.00', '4.00', '256', '384', '5.00', '4.00']
    assert 'pruned, hybrid, batch 128' in [text.get_text() for text in figure(frame).findobj(Text)]


def test_a_slower_model_shows_by_how_much():
    lines = text_table(to_frame([row(0, 0.9, 2**20, 16)])).splitlines()
    assert lines[9].split() == ['0', '16.0', '24.0', '0.62', '0.50', '2048', '3072', '0.62', '0.50']


def test_every_back_end_has_its_columns_and_its_table():
    frame = to_frame([row(0, 0.9, 2**20, 4, backends=('eager', 'compile'))])
    assert frame['cpu_compile_speedup_batch_1_over_fused'].tolist() == [2]
    titles = [line for line in text_table(frame).splitlines() if line.startswith('Latency')]
    assert [title.split('(')[0] for title in titles] == [
        f'Latency of the pruned models, all layers dense, on {where} ' for where in ('cpu', 'cpu_compile')]


def test_without_test_images_and_other_batch_sizes():
    frame = to_frame([row(0, None, 2**20, 8, batch_sizes=(1,), changed=None)])
    assert text_table(frame).splitlines()[3].split()[:5] == ['0', '1.0', '-', '-', '-']
    figure(frame).savefig(io.BytesIO(), format='png')
    with pytest.raises(LookupError, match='no latency was measured on cpu at batch size 1'):
        to_frame([row(0, 0.9, 2**20, 8, batch_sizes=(2,))])


def test_figure_is_drawn_without_pyplot_and_with_units():
    had_pyplot = 'matplotlib.pyplot' in sys.modules
    canvas = figure(to_frame(rows()), 'a title')
    file = io.BytesIO()
    canvas.savefig(file, format='png')
    assert file.getvalue().startswith(b'\x89PNG')
    front, accuracy, latency = canvas.axes
    assert front.get_xlabel() == 'CPU latency (ms, batch 1)'
    assert front.get_ylabel() == accuracy.get_ylabel() == 'top-1 accuracy (%)'
    assert latency.get_ylabel() == 'CPU latency (ms per image)'
    assert latency.get_xlabel().startswith('compression ratio')
    assert latency.get_xscale() == 'log' and canvas.get_suptitle() == 'a title'
    drawn = accuracy.get_lines()[1].get_xydata()
    np.testing.assert_allclose(drawn, [[1, 90], [2, 80], [4, 85], [8, 89.99]])
    assert ('matplotlib.pyplot' in sys.modules) == had_pyplot


def test_front_is_the_best_accuracy_within_a_latency_and_each_kind_has_its_marker():
    smaller = row(4, 0.6, 2**17, 6)  # optimal for its size alone
    front = figure(to_frame([*rows(), smaller])).axes[0]
    [line] = front.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[4, 85], [6, 85], [6, 85], [8, 85], [8, 90]])
    drawn = {scatter.get_label(): scatter.get_offsets().tolist() for scatter in front.collections}
    assert drawn == {
        'optimal': [[4, 85], [6, 60], [8, 90]],
        'beaten by an optimal one': [[5, 80]],
        'near-duplicate of an optimal one': [[pytest.approx(8.16), pytest.approx(89.99)]]}
    filled = [len(scatter.get_facecolor()) > 0 for scatter in front.collections]
    assert filled == [True, False, False]


@pytest.mark.parametrize('num_levels', [9, 25])
def test_labels_name_each_variant_and_cover_nothing(num_levels):
    """Most levels of a real experiment lie close together: nothing could be removed."""
    random = np.random.default_rng(0)
    rows = [row(k, 0.9 - 0.01 * random.random() - max(0, k / num_levels - 0.7) * 0.1,
                int(2**20 * min(1, 4 * (1 - k / num_levels))),
                8 * min(1, 4 * (1 - k / num_levels)) * random.normal(1, 0.01)) for k in range(num_levels)]
    canvas = figure(to_frame(rows))
    canvas.draw_without_rendering()
    front = canvas.axes[0]
    assert {text.get_text() for text in front.texts} == {f'{2.0**k:.3g}x' for k in range(num_levels)}
    boxes = [Text.get_window_extent(text) for text in front.texts]  # without the lines to their points
    points = np.concatenate([front.transData.transform(scatter.get_offsets()) for scatter in front.collections])
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[number + 1:])
        assert not box.count_contains(points)
        assert front.bbox.contains(*box.min) and front.bbox.contains(*box.max)


def test_replicates_are_summed_up_in_a_table():
    frames = [to_frame(rows()).assign(replicate=number) for number in (1, 2)]
    lines = to_markdown(pd.concat(frames, ignore_index=True)).splitlines()
    assert len(lines) == 2 + 4
    assert lines[4] == '| 2 | 4.0x | 85.00 | 85.00 | 262,144 | 131,072 | 1.049 | 2.00x | 2.00x | 2 |'
