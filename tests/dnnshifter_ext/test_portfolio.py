import io
import sys

import numpy as np
import pandas as pd

from dnnshifter_ext.portfolio import Row, figure, pareto_front, text_table, to_frame
from dnnshifter_ext.profiler import Latency, PeakMemory, Profile


def profile_of(accuracy, num_params, latency_ms, num_nonzero=None, batch_sizes=(1, 128)):
    return Profile(
        accuracy=accuracy, num_examples=100, num_params=num_params,
        num_nonzero_params=num_nonzero or num_params, size_bytes=4 * num_params,
        latencies=tuple(Latency('cpu', n, latency_ms * n, latency_ms * n * 0.9, latency_ms * n * 1.2, 5, 2)
                        for n in batch_sizes),
        peak_memory=tuple(PeakMemory('cpu', n, 2**20 * n) for n in batch_sizes))


def rows():
    dense = profile_of(0.9, 2**20, 8.0)
    return [
        Row(2, 4.0, profile_of(0.85, 2**20, 8.0), profile_of(0.85, 2**18, 4.0, 2**17), 12.5, 1e-7, 0),
        Row(0, 1.0, dense, dense, 30.0, 0.0, 0),
        Row(1, 2.0, profile_of(0.8, 2**20, 8.0), profile_of(0.8, 2**19, 5.0), 20.0, 1e-7, 0),
    ]


def test_frame_has_one_line_per_level_and_units_in_its_names():
    frame = to_frame(rows())
    assert frame['level'].tolist() == [0, 1, 2]
    assert frame['size_mib'].tolist() == [4, 2, 1]
    assert frame['params_stored'].tolist() == [2**20, 2**19, 2**18]
    assert frame['params_nonzero'].tolist() == [2**20, 2**19, 2**17]
    assert frame['cpu_speedup_batch_1'].tolist() == [1, 1.6, 2]
    assert frame['cpu_latency_ms_batch_128'].tolist() == [8 * 128, 5 * 128, 4 * 128]
    assert frame['cpu_peak_memory_mib_batch_1'].tolist() == [1, 1, 1]
    assert frame['pareto_optimal'].tolist() == [True, False, True]
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(again, frame)


def test_pareto_front():
    costs = np.array([[1, 5], [2, 2], [2, 3], [5, 1], [5, 1], [6, 6]])
    assert pareto_front(costs).tolist() == [True, True, False, True, True, False]
    assert pareto_front(np.array([[1.0], [1.0]])).tolist() == [True, True]


def test_text_table():
    assert text_table(to_frame(rows())).splitlines() == [
        'level  ratio  acc sparse %  acc pruned %     params   non-zero   MiB  CPU ms b1  CPU ms b128'
        '  x b1  x b128  prune ms',
        '-' * 119,
        '    0    1.0         90.00         90.00  1,048,576  1,048,576  4.00       8.00       1024.0'
        '  1.00    1.00        30  *',
        '    1    2.0         80.00         80.00    524,288    524,288  2.00       5.00        640.0'
        '  1.60    1.60        20',
        '    2    4.0         85.00         85.00    262,144    131,072  1.00       4.00        512.0'
        '  2.00    2.00        12  *',
        '* on the Pareto front of accuracy, size and CPU latency at batch 1',
    ]


def test_without_accuracy_and_other_batch_sizes():
    sparse = profile_of(None, 100, 1.0, batch_sizes=(1,))
    frame = to_frame([Row(0, 1.0, sparse, sparse, 1.0, 0.0, 0)])
    assert text_table(frame).splitlines()[2].split()[:4] == ['0', '1.0', '-', '-']
    figure(frame)


def test_figure_is_drawn_without_pyplot_and_with_units():
    had_pyplot = 'matplotlib.pyplot' in sys.modules
    canvas = figure(to_frame(rows()), 'a title')
    file = io.BytesIO()
    canvas.savefig(file, format='png')
    assert file.getvalue().startswith(b'\x89PNG')
    accuracy, latency = canvas.axes
    assert accuracy.get_ylabel() == 'top-1 accuracy (%)'
    assert latency.get_ylabel() == 'CPU latency (ms per image)'
    assert latency.get_xlabel().startswith('compression ratio')
    assert latency.get_xscale() == 'log' and canvas.get_suptitle() == 'a title'
    drawn = accuracy.get_lines()[1].get_xydata()
    np.testing.assert_allclose(drawn, [[1, 90], [2, 80], [4, 85]])
    assert ('matplotlib.pyplot' in sys.modules) == had_pyplot
