"""Table 5: memory and decision overhead of our runtime, a model ensemble and Dynamic-OFA, measured in one process.

    python -m experiments.table5_switching --scale=small

All hold a portfolio of the VGG. Ours and the ensemble's is that of the IMP run: the converted variants, packed and not.
Dynamic-OFA's are sub-networks of a super-network that is made out of the dense run by progressive shrinking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
import hashlib
import json
import os
import pathlib
import statistics
import time

from matplotlib.figure import Figure
import pandas as pd
import torch
from torch import nn

from dnnshifter_ext import paths as extension_paths
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.methods.switching import dynamic_ofa
from dnnshifter_ext.methods.switching.dynamic_ofa import DynamicOFA, Elastic, Level
from dnnshifter_ext.methods.switching.ensemble import Ensemble
from dnnshifter_ext.methods.unstructured.data import mini_batches
from dnnshifter_ext.package import files, models
from dnnshifter_ext.profiler import compare_latency
from dnnshifter_ext.runtime import Fixed, Runtime
from experiments import command, measurements, stored, tables
from experiments import runs as declared
from experiments.executor import Task
from experiments.methods import IMP
from experiments.runs import TrainedModel
from experiments.scales import Network, Scale, Switching
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.files import write_atomically
from open_lth.foundations.hparams import TrainingHparams
from open_lth.foundations.rng import derive_seed, seed_everything
from open_lth.foundations.step import Step
from open_lth.models import registry as models_registry
from open_lth.training.train import is_finished, standard_train

TITLE = 'Table 5: switching between models at run time'
NETWORKS = ('vgg',)
ENSEMBLE, OFA, TORCH, AHEAD, NUMPY = 'ensemble', 'dynamic_ofa', 'torch', 'torch_ahead', 'numpy'
_LABELS = {ENSEMBLE: 'Model ensemble', OFA: 'Dynamic-OFA', TORCH: 'DNNShifter, torch',
           AHEAD: 'DNNShifter, torch, inflated ahead', NUMPY: 'DNNShifter, without torch'}
_COLORS = ('black', 'tab:orange', 'tab:red', 'tab:purple', 'tab:blue')
_QUANTITIES = ('num_models', 'memory_low_bytes', 'memory_high_bytes', 'memory_peak_bytes', 'overhead_ms',
               'overhead_p95_ms', 'first_answer_ms', 'accuracy_low', 'accuracy_high', 'super_network_bytes')
_MIB = 2**20


def runs(scale: Scale) -> tuple[Task, ...]:
    return tuple(task for replicate in scale.replicates for network in scale.networks if network.name in NETWORKS
                 for task in _tasks(scale, network, replicate))


def read(tasks: Sequence[Task]) -> pd.DataFrame:
    """One row per method and replicate; NaN where it has not been measured.

    memory_low_bytes, _high_bytes: between switches, depending on the active model; memory_peak_bytes: at the worst
    moment of a switch. overhead_ms, _p95_ms: from the request of a switch until the model can run (the ensemble: until
    the answer is chosen), median and 95th percentile; first_answer_ms: until it has answered one image.
    accuracy_low, _high: on the test set, as fractions. super_network_bytes: of Dynamic-OFA.
    """
    rows = [{'method': method, 'replicate': task.replicate} | (task.results() if task.is_done else {}).get(method, {})
            for task in tasks if isinstance(task, Measurement) for method in _LABELS]
    return pd.DataFrame(rows, columns=('method', 'replicate', *_QUANTITIES)).astype(dict.fromkeys(_QUANTITIES, float))


def analyse(results: pd.DataFrame) -> pd.DataFrame:
    """One row per method; of each quantity mean, standard deviation and n."""
    return tables.spread(results, ['method'], _QUANTITIES)


def report(scale: Scale, table: pd.DataFrame) -> str:
    theirs = tables.paper()['tables']['table5']['rows']
    memory = {ENSEMBLE: f'{theirs["model_ensemble"]["memory_mb"]}', OFA: f'{theirs["dynamic_ofa"]["memory_mb"]}',
              TORCH: f'{theirs["dnnshifter"]["memory_mb_min"]} to {theirs["dnnshifter"]["memory_mb_max"]}'}
    overhead = {ENSEMBLE: theirs['model_ensemble'], OFA: theirs['dynamic_ofa'], TORCH: theirs['dnnshifter']}
    ensemble = tables.find(table, method=ENSEMBLE)
    lines = []
    for method, label in _LABELS.items():
        row = tables.find(table, method=method)
        relative = row.memory_peak_bytes_mean / ensemble.memory_peak_bytes_mean
        lines.append([
            label, tables.value(row.num_models_mean, 0) or tables.MISSING,
            _range(row, 'memory_low_bytes', 'memory_high_bytes', 3, 1 / _MIB),
            tables.cell(row, 'memory_peak_bytes', 3, factor=1 / _MIB),
            tables.value(relative, unit='x') or tables.MISSING, memory.get(method, ''),
            tables.cell(row, 'overhead_ms', 3), tables.cell(row, 'overhead_p95_ms', 3),
            tables.cell(row, 'first_answer_ms', 3),
            tables.value(overhead[method]['overhead_ms'], 0) if method in overhead else '',
            _range(row, 'accuracy_low', 'accuracy_high', 2, 100)])
    head = ['method', 'models', 'memory between switches (MB)', 'worst moment of a switch (MB)', 'over the ensemble\'s',
            'paper: memory (MB)', 'decision overhead (ms, p50)', 'p95', 'until the first answer (ms)',
            'paper: overhead (ms)', 'accuracy (%)']
    [network] = [network for network in scale.networks if network.name in NETWORKS]
    return '\n\n'.join([tables.markdown(head, lines), _remarks(scale.switching, network, table)])


def figure(scale: Scale, table: pd.DataFrame) -> Figure:
    """Overhead and memory over those of the ensemble, ours and the paper's: the networks differ in size."""
    theirs = tables.paper()['tables']['table5']['rows']
    base, ours = theirs['model_ensemble'], tables.find(table, method=ENSEMBLE)
    canvas = Figure(figsize=(7.5, 4.4), layout='constrained')
    axes = canvas.subplots()
    points = [(label, color, 'o', row.overhead_ms_mean / ours.overhead_ms_mean,
               [row[f'memory_{which}_bytes_mean'] / ours.memory_peak_bytes_mean for which in ('low', 'high', 'peak')])
              for (method, label), color in zip(_LABELS.items(), _COLORS) if method != ENSEMBLE
              for row in [tables.find(table, method=method)]]
    dnnshifter, ofa = theirs['dnnshifter'], theirs['dynamic_ofa']
    for label, color, row, memory_mb in (
            ('paper: Dynamic-OFA', _COLORS[1], ofa, [ofa['memory_mb']]),
            ('paper: DNNShifter', _COLORS[2], dnnshifter, [dnnshifter['memory_mb_min'], dnnshifter['memory_mb_max']])):
        points.append((label, color, 's', row['overhead_ms'] / base['overhead_ms'],
                       [memory / base['memory_mb'] for memory in memory_mb]))
    for label, color, marker, overhead, memory in points:
        face = 'white' if marker == 's' else color
        axes.plot([overhead] * len(memory), memory, color=color, marker=marker, markerfacecolor=face, label=label)
    axes.plot(1, 1, color='black', marker='*', markersize=11, linestyle='', label=_LABELS[ENSEMBLE])
    axes.set_xscale('log')
    axes.set_ylim(0, None)
    axes.set_xlabel("decision overhead / the ensemble's")
    axes.set_ylabel("memory / the ensemble's\n(smallest, largest model active; worst moment)")
    axes.grid(alpha=0.3)
    canvas.legend(loc='outside right center')
    return canvas


def _range(row: pd.Series, low: str, high: str, digits: int, factor: float) -> str:
    cells = [tables.cell(row, column, digits, factor=factor) for column in (low, high)]
    return cells[0] if cells[0] == cells[1] else ' to '.join(cells)


def _remarks(switching: Switching, network: Network, table: pd.DataFrame) -> str:
    ratios = ', '.join(f'{ratio}x' for ratio in switching.portfolio)
    model = models_registry.get(network.training.model_hparams, network.training.train_outputs)
    elastic = 'Width and depth are elastic.' if dynamic_ofa.has_elastic_depth(model) else (
        'Its width is elastic; its depth is not, as no stage has 3 convolutions.')
    super_network = tables.cell(tables.find(table, method=OFA), 'super_network_bytes', 3, factor=1 / _MIB)
    return '\n'.join([
        f'* Portfolio: {ratios}. MB: 2^20 bytes, as in the paper, of weights and what is held to make them; memory of '
        'the process and of activations is in none of the rows. One process, one image at a time, on the CPU; the '
        f'methods in turn; rounds up and down the portfolio: {switching.num_rounds}.',
        '* Decision overhead: ensemble: all models answer, the most confident answer is chosen. Dynamic-OFA: the '
        'sub-network is built with copied weights, its stored batch-norm statistics are loaded. DNNShifter: decide, '
        'inflate, rebuild; "inflated ahead": the neighbour was made ready before, and its memory is counted.',
        '* The paper counts what is resident: of Dynamic-OFA the super-network alone, which is why its 56.2 MB are a '
        f'dense VGG-16. That would be {super_network} MB of ours; here the active sub-network and the stored '
        'statistics count too.',
        f'* Dynamic-OFA for a VGG is our reading, the paper gives no details. {elastic} Its levels are chosen among '
        f'{switching.num_candidates} sub-networks by latency and by accuracy on training images.'])


# ---- what has to be run

def _tasks(scale: Scale, network: Network, replicate: int) -> tuple[Task, ...]:
    desc, settings = network.lottery, scale.switching
    variants = tuple(TrainedModel(network, IMP, ratio, replicate, desc.run_path(replicate, level))
                     for ratio, level in settings.portfolio.items())
    dense = declared.dense(scale, network, replicate)
    hparams = replace(network.training.training_hparams, **settings.shrinking)
    name = hashlib.md5(str(hparams).encode()).hexdigest()
    elastic = ElasticTraining(dense.models[0], hparams, network.training.run_path(replicate, f'elastic_{name}'))
    measurement = Measurement(variants, elastic, settings,
                              os.path.join(extension_paths.run_directory(desc, replicate), 'switching'))
    return (declared.imp(scale, network, replicate), dense, elastic, measurement)


@dataclass(frozen=True)
class ElasticTraining:
    """Makes a trained dense network elastic: first in width, then, where it can be, in depth.

    hparams: of each phase. A phase is a training of the engine, with its files, in a folder of its own; the weights in
    it are an ordinary model, the full network.
    """

    dense: TrainedModel
    hparams: TrainingHparams
    directory: str
    alone = False

    @property
    def title(self) -> str:
        return f'{self.dense.network.name} super-network, replicate {self.dense.replicate}'

    @property
    def is_done(self) -> bool:
        return is_finished(self._phases[-1][0], self._end_step)

    @property
    def blocked_by(self) -> str | None:
        return None if self.dense.is_trained else f'a trained model in {self.dense.location}'

    def work(self) -> None:
        """Does the phases that are not done; one that was begun goes on from its checkpoint."""
        desc = self.dense.network.training
        teacher = measurements.load(self.dense)
        network = dynamic_ofa.sort_channels(teacher)
        for location, elastic_depth in self._phases:
            if not is_finished(location, self._end_step):
                seed_everything(derive_seed(os.path.basename(self.directory), self.dense.replicate, elastic_depth))
                standard_train(Elastic(network, teacher, elastic_depth), location, desc.dataset_hparams, self.hparams,
                               evaluate_every_epoch=False)
            network = self._load(location)

    def network(self) -> nn.Module:
        """Of a training that is done, in evaluation mode."""
        return self._load(self._phases[-1][0])

    def _load(self, location: str) -> nn.Module:
        desc = self.dense.network.training
        return models_registry.load(location, self._end_step, desc.model_hparams, desc.train_outputs).eval()

    @property
    def _phases(self) -> list[tuple[str, bool]]:
        """(folder, whether the depth is elastic) of each."""
        desc = self.dense.network.training
        with torch.device('meta'):
            has_depth = dynamic_ofa.has_elastic_depth(models_registry.get(desc.model_hparams, desc.train_outputs))
        return [(os.path.join(self.directory, name), name == 'depth') for name in ('width', 'depth')[:1 + has_depth]]

    @property
    def _end_step(self) -> Step:
        return self.dense.network.training.str_to_step(self.hparams.training_steps)


@dataclass(frozen=True)
class Measurement:
    """All methods, measured in turn in one process; kept beside the levels of the IMP run."""

    variants: tuple[TrainedModel, ...]
    elastic: ElasticTraining
    settings: Switching
    directory: str
    alone = True

    @property
    def replicate(self) -> int:
        return self.variants[0].replicate

    @property
    def title(self) -> str:
        return f'switch {self.variants[0].network.name}, replicate {self.replicate}'

    @property
    def is_done(self) -> bool:
        return self.blocked_by is None and self._stored().get('settings') == self._settings

    @property
    def blocked_by(self) -> str | None:
        missing = next((model.location for model in self.variants if not model.is_trained), None)
        if missing is None and not self.elastic.is_done:
            missing = self.elastic.directory
        return None if missing is None else f'a trained model in {missing}'

    def work(self) -> None:
        """Converts, packs, measures and writes. Raises ValueError for a model that cannot be converted."""
        results = measure(self)
        with write_atomically(self._path) as file:
            json.dump({'settings': self._settings, 'results': results}, file, indent=4)

    def results(self) -> dict[str, dict[str, float]]:
        """Method -> its quantities, of a measurement that is done."""
        return self._stored()['results']

    @property
    def _settings(self) -> dict:
        settings = asdict(self.settings) | {'super_network': os.path.basename(self.elastic.directory)}
        return json.loads(json.dumps(settings))  # as it is read back: keys are text

    @property
    def _path(self) -> str:
        return os.path.join(self.directory, 'switching.json')

    def _stored(self) -> dict:
        try:
            return stored.read(self._path)
        except FileNotFoundError:
            return {}


# ---- the measurement

@dataclass(frozen=True)
class Contestant:
    """One method. visit(index) switches to a model, and returns the overhead and the time until its first answer in ms.

    num_models: that can be switched to. memory_bytes: now, and at the worst moment until now.
    answers: gives the classes (N,) of each model, or of the method as a whole, for a batch of images.
    prepare: what a method does ahead of a visit.
    """

    num_models: int
    visit: Callable[[int], tuple[float, float]]
    memory_bytes: Callable[[], tuple[int, int]]
    answers: Callable[[torch.Tensor], Iterator[torch.Tensor]]
    prepare: Callable[[int], object] = lambda index: None


def measure(measurement: Measurement) -> dict[str, dict[str, float]]:
    """Method -> its quantities; see `read`."""
    settings, dataset = measurement.settings, measurement.variants[0].network.lottery.dataset_hparams
    test_set = datasets_registry.get(dataset, train=False)
    images = next(iter(test_set))[0].cpu()
    image = images[:1]
    converted = {f'{model.ratio}x': convert(measurements.load(model), images[:measurements.NUM_EXAMPLES_VERIFIED],
                                            execution='auto') for model in measurement.variants}
    path = pathlib.Path(measurement.directory) / 'portfolio.dnns'
    files.save(path, [models.variant(name, conversion.pruned, {'execution': conversion.execution.to_dict()},
                                     image.shape[1:]) for name, conversion in converted.items()])
    network = measurement.elastic.network()
    calibration = mini_batches(dataset, -(-settings.num_images // dataset.batch_size), measurement.replicate)
    calibration = [(inputs.cpu(), labels.cpu()) for inputs, labels in calibration]
    seed_everything(derive_seed('levels', measurement.replicate))
    levels = choose_levels(network, calibration, settings)

    runtimes = {method: Runtime(path, backend=backend, policy=Fixed(), num_threads=torch.get_num_threads(),
                                decide_every_s=None)
                for method, backend in ((TORCH, 'torch'), (AHEAD, 'torch'), (NUMPY, 'numpy'))}
    contestants = {
        ENSEMBLE: _ensemble([conversion.pruned for conversion in converted.values()], image),
        OFA: _dynamic_ofa(DynamicOFA(network, levels), len(levels), image),
        **{method: _runtime(runtime, image, method == AHEAD) for method, runtime in runtimes.items()}}
    try:
        results = _in_turn(contestants, settings.num_rounds)
        accuracies = _accuracies({name: contestants[name] for name in (ENSEMBLE, OFA, TORCH)}, test_set)
    finally:
        for runtime in runtimes.values():
            runtime.close()
    for name, result in results.items():
        found = accuracies.get(name, accuracies[TORCH])  # the same models
        result |= {'accuracy_low': min(found), 'accuracy_high': max(found)}
    results[OFA]['super_network_bytes'] = size_bytes(network)
    return results


def choose_levels(network: nn.Module, batches: dynamic_ofa.Batches, settings: Switching) -> list[Level]:
    """The levels of a super-network, by latency of one image and by accuracy on the batches; fastest first.

    The largest sub-network has the super-network's own batch-norm statistics, the others those of the batches.
    """
    subs = {config: dynamic_ofa.extract(network, config)
            for config in dynamic_ofa.candidates(network, settings.num_candidates)}
    for config, sub in subs.items():
        if config != dynamic_ofa.largest(network):
            dynamic_ofa.recalibrate(sub, batches)
    latencies = compare_latency(subs, batches[0][0].shape[1:], budget_s=0.02)
    return dynamic_ofa.pareto(
        (Level(config, dynamic_ofa.statistics(sub), _accuracy(sub, batches), latencies[config].p50_ms)
         for config, sub in subs.items()), settings.num_levels)


def _accuracy(model: nn.Module, batches: dynamic_ofa.Batches) -> float:
    with torch.inference_mode():
        hits = [model(inputs).argmax(1) == labels for inputs, labels in batches]
    return torch.cat(hits).float().mean().item()


def _ensemble(variants: Sequence[nn.Module], image: torch.Tensor) -> Contestant:
    ensemble = Ensemble(variants)

    def visit(index: int) -> tuple[float, float]:
        begin_s = time.perf_counter()
        ensemble(image)
        return (_since_ms(begin_s),) * 2

    return Contestant(len(variants), visit, lambda: (ensemble.size_bytes,) * 2, lambda images: iter([ensemble(images)]))


def _dynamic_ofa(ofa: DynamicOFA, num_levels: int, image: torch.Tensor) -> Contestant:
    def visit(index: int) -> tuple[float, float]:
        with torch.inference_mode():
            begin_s = time.perf_counter()
            sub = ofa.switch(index)
            overhead_ms = _since_ms(begin_s)
            sub(image)
            return overhead_ms, _since_ms(begin_s)

    def answers(images: torch.Tensor) -> Iterator[torch.Tensor]:
        for index in range(num_levels):
            with torch.inference_mode():
                yield ofa.switch(index)(images).argmax(1)

    return Contestant(num_levels, visit, lambda: (ofa.resident_bytes, ofa.peak_bytes), answers)


def _runtime(runtime: Runtime, image: torch.Tensor, ahead: bool) -> Contestant:
    """ahead: each model is inflated before the switch to it is asked for."""
    names = runtime.stats().variants

    def visit(index: int) -> tuple[float, float]:
        begin_s = time.perf_counter()
        record = runtime.switch_to(names[index])
        switch_ms = _since_ms(begin_s)
        runtime.infer(image)
        # The runtime tries a model before it publishes it, which is not needed to run it. None: it was active already.
        return switch_ms - (record.first_inference_ms if record else 0), _since_ms(begin_s)

    def memory_bytes() -> tuple[int, int]:
        memory = runtime.stats().memory
        return memory.total_bytes, memory.peak_bytes + memory.scratch_bytes

    def answers(images: torch.Tensor) -> Iterator[torch.Tensor]:
        for name in names:
            runtime.switch_to(name)
            yield runtime.infer(images).argmax(1)

    contestant = Contestant(len(names), visit, memory_bytes, answers)
    return replace(contestant, prepare=lambda index: runtime.prefetch(names[index])) if ahead else contestant


def _in_turn(contestants: dict[str, Contestant], num_rounds: int) -> dict[str, dict[str, float]]:
    """In each round every contestant goes up and down its models, one neighbour after the other."""
    visits: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    memory: dict[str, list[int]] = {name: [] for name in contestants}
    for contestant in contestants.values():  # warm
        contestant.visit(contestant.num_models - 1)
        contestant.visit(0)
    for _ in range(num_rounds):
        for name, contestant in contestants.items():
            for index in _up_and_down(contestant.num_models):
                contestant.prepare(index)
                memory[name].append(contestant.memory_bytes()[0])
                visits[name].append(contestant.visit(index))
    found = {}
    for name, contestant in contestants.items():
        overheads_ms, first_answers_ms = zip(*visits[name], strict=True)
        found[name] = {
            'num_models': contestant.num_models, 'num_switches': len(visits[name]),
            'memory_low_bytes': min(memory[name]), 'memory_high_bytes': max(memory[name]),
            'memory_peak_bytes': contestant.memory_bytes()[1],
            'overhead_ms': statistics.median(overheads_ms), 'first_answer_ms': statistics.median(first_answers_ms),
            'overhead_p95_ms': statistics.quantiles(overheads_ms, n=20, method='inclusive')[18]}
    return found


def _up_and_down(num_models: int) -> list[int]:
    """From the first model to the last and back, one neighbour after the other; of one model that one, twice."""
    return [*range(1, num_models), *range(num_models - 2, -1, -1)] or [0, 0]


def _accuracies(contestants: dict[str, Contestant], batches: dynamic_ofa.Batches) -> dict[str, list[float]]:
    """Of each model of each method."""
    num_right: dict[str, list[int]] = {}
    num_images = 0
    for images, labels in batches:
        images, labels = images.cpu(), labels.cpu().reshape(-1)
        num_images += len(labels)
        for name, contestant in contestants.items():
            right = [int((answers == labels).sum()) for answers in contestant.answers(images)]
            num_right[name] = [sum(pair) for pair in zip(num_right.get(name, [0] * len(right)), right, strict=True)]
    return {name: [right / num_images for right in counts] for name, counts in num_right.items()}


def _since_ms(begin_s: float) -> float:
    return (time.perf_counter() - begin_s) * 1e3


if __name__ == '__main__':
    command.main('table5_switching')
