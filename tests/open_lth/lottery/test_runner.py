import pytest
import torch

from open_lth.datasets import base, digits
from open_lth.models import registry as models
from open_lth.pruning import registry as pruning
from open_lth.pruning.mask import Mask
from open_lth.pruning.sparse_global import PruningHparams
from tests.helpers import (
    TINY_LOTTERY,
    artefacts,
    content_digests,
    level,
    list_files,
    load,
    run_engine,
    same_state,
    succeed,
    tiny_desc,
)


def lottery(root, *flags, levels=1, seed=None):
    return succeed(*TINY_LOTTERY, f'--levels={levels}', *flags, root=root, seed=seed)


def starts_and_ends(folder):
    return [load(folder / f'model_ep{ep}_it{it}.pth') for ep, it in ((0, 0), (2, 0))]


# ---- files

def test_files_of_each_level(root):
    lottery(root, levels=2)
    common = {
        'mask.pth',
        'sparsity_report.json',
        'model_ep0_it0.pth',
        'model_ep2_it0.pth',
        'checkpoint.pth',
        'logger',
    }
    assert artefacts(level(root, 0)) == common | {'hparams.log'}
    assert artefacts(level(root, 1)) == artefacts(level(root, 2)) == common
    assert not (level(root, 2).parent.parent / 'level_3').exists()


def test_files_with_rewinding(root):
    lottery(root, '--rewinding_steps=3it', levels=1)
    assert artefacts(level(root, 'pretrain')) == {
        'model_ep0_it0.pth', 'model_ep0_it3.pth', 'checkpoint.pth', 'logger'}
    for number in (0, 1):
        assert {'model_ep0_it3.pth', 'model_ep2_it0.pth'} == {
            name for name in artefacts(level(root, number)) if name.startswith('model')}


# ---- weights

def test_each_level_starts_from_the_first_weights_under_its_mask(root):
    lottery(root, levels=2)
    first, _ = starts_and_ends(level(root, 0))
    for number in (1, 2):
        mask = load(level(root, number) / 'mask.pth')
        start, end = starts_and_ends(level(root, number))
        expected = {name: tensor * mask[name] if name in mask else tensor for name, tensor in first.items()}
        assert same_state(start, expected)
        assert all(not end[name][mask[name] == 0].any() for name in mask)
        assert not same_state(start, end)


def test_masks_are_nested_and_shrink_by_a_fifth_and_one(root):
    lottery(root, levels=3)
    masks = [load(level(root, number) / 'mask.pth') for number in range(4)]
    kept = [sum(int(mask.sum()) for mask in state.values()) for state in masks]
    for number in range(3):
        assert kept[number + 1] == kept[number] - -(-kept[number] // 5) - 1
        assert all((masks[number + 1][name] <= masks[number][name]).all() for name in masks[0])


def test_masks_follow_from_the_trained_weights_of_the_level_before(root):
    lottery(root, levels=1)
    [prunable] = [set(load(level(root, 0) / 'mask.pth'))]
    _, trained = starts_and_ends(level(root, 0))
    mask = load(level(root, 1) / 'mask.pth')
    kept = torch.cat([trained[name][mask[name] == 1].abs() for name in prunable])
    gone = torch.cat([trained[name][mask[name] == 0].abs() for name in prunable])
    assert kept.min() > gone.max()


def test_rewinding_starts_every_level_from_the_pretrained_weights(root):
    lottery(root, '--rewinding_steps=3it', levels=1)
    pretrained = load(level(root, 'pretrain') / 'model_ep0_it3.pth')
    assert same_state(load(level(root, 0) / 'model_ep0_it3.pth'), pretrained)
    mask = load(level(root, 1) / 'mask.pth')
    rewound = load(level(root, 1) / 'model_ep0_it3.pth')
    assert all(torch.equal(rewound[name], pretrained[name] * mask[name]) for name in mask)


def test_rewinding_is_pretraining_with_the_same_options(root, tmp_path):
    lottery(root, '--rewinding_steps=3it', seed=4)
    pretrain = [flag.replace('--', '--pretrain_', 1) for flag in TINY_LOTTERY
                if flag.startswith(('--dataset_name', '--batch_size', '--subsample', '--optimizer', '--lr',
                                    '--momentum'))]
    lottery(tmp_path / 'other', '--pretrain', *pretrain, '--pretrain_training_steps=3it', seed=4)
    assert content_digests(root) == content_digests(tmp_path / 'other')


# ---- an oracle for draws

class HandWritten:
    """The lottery as OpenLTH is described: every model built and every draw taken in its place."""

    def __init__(self, seed, rewinding):
        self.desc = tiny_desc()
        self.rewinding = rewinding
        self.dataset = digits.Dataset.get_train_set(True)
        self.dataset.subsample(0, 0.1)
        torch.manual_seed(seed)

    def build(self, state=None):
        model = models.get(self.desc.model_hparams)
        if state is not None:
            model.load_state_dict(state)
        return model

    def train(self, model, mask, start, end):
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = base.DataLoader(self.dataset, 30, 0)
        for epoch in range(start // 5, end // 5 + 1):
            loader.shuffle(None)
            for it, (images, labels) in enumerate(loader):
                iteration = 5 * epoch + it
                if iteration < start:
                    continue
                if it == 0 or iteration in (start, end):
                    torch.empty((), dtype=torch.int64).random_()  # the iterator of an evaluation
                for name in mask:
                    parameters[name].data *= mask[name]
                if iteration == end:
                    return
                optimizer.zero_grad()
                model.train()
                model.criterion(model(images), labels).backward()
                optimizer.step()

    def run(self, levels):
        """The trained weights of every level."""

        model = self.build()
        if self.rewinding:
            self.train(model, {}, 0, self.rewinding)
            self.build()
            model = self.build(model.state_dict())
        first, mask, trained = model.state_dict(), Mask.ones_like(self.build()), []
        for number in range(levels + 1):
            if number > 0:
                prune = pruning.get(PruningHparams(pruning_strategy='sparse_global'))
                mask = prune(self.build(trained[-1]), mask)
            model = self.build(first)
            self.train(model, mask, self.rewinding, 10)
            trained.append(model.state_dict())
        return trained


@pytest.mark.parametrize('rewinding', [0, 3])
def test_every_level_has_the_bits_of_a_hand_written_lottery(root, local_platform, rewinding):
    """With augmentation and without a data order seed, so that every single draw matters."""

    lottery(root, f'--rewinding_steps={rewinding}it', levels=2, seed=6)
    for number, state in enumerate(HandWritten(6, rewinding).run(levels=2)):
        assert same_state(load(level(root, number) / 'model_ep2_it0.pth'), state), number


# ---- repeating

def test_the_same_command_gives_the_same_bits(root, tmp_path):
    lottery(root)
    torch.manual_seed(123)
    lottery(tmp_path / 'again')
    assert content_digests(root) == content_digests(tmp_path / 'again')


def test_replicates_and_seeds_differ(root):
    lottery(root)
    lottery(root, '--replicate=2')
    lottery(root, '--replicate=3', '--seed=8')
    lottery(root, '--replicate=4', seed=8)
    first = [load(level(root, 0, replicate=replicate) / 'model_ep0_it0.pth') for replicate in (1, 2, 3, 4)]
    assert not same_state(first[0], first[1]) and not same_state(first[0], first[2])
    assert same_state(first[2], first[3]), '--seed and --global_seed are the same'


def test_seed_is_that_of_torch(root):
    lottery(root, levels=0, seed=11)
    torch.manual_seed(11)
    expected = models.get(tiny_desc().model_hparams).state_dict()
    assert same_state(load(level(root, 0) / 'model_ep0_it0.pth'), expected)


def test_extending_equals_running_in_one_go(root, tmp_path):
    lottery(root, '--rewinding_steps=1it', levels=1)
    lottery(root, '--rewinding_steps=1it', levels=3)
    lottery(tmp_path / 'whole', '--rewinding_steps=1it', levels=3)
    assert content_digests(root) == content_digests(tmp_path / 'whole')


def test_finished_levels_are_not_touched(root):
    lottery(root, levels=1)
    before = {
        name: (root / name).stat().st_mtime_ns
        for name in list_files(root)
        if not name.endswith('hparams.log')
    }
    lottery(root, levels=1)
    assert {name: (root / name).stat().st_mtime_ns for name in before} == before


def test_a_run_made_by_openlth_is_gone_on_with(root):
    """It has no generator states; masks and weights are taken as they are."""

    lottery(root, levels=1)
    for path in root.rglob('rng_*.pth'):
        path.unlink()
    before = content_digests(root)
    lottery(root, levels=2)
    after = content_digests(root)
    assert {name: after[name] for name in before} == before
    assert load(level(root, 2) / 'mask.pth')


# ---- speaking

def loud(root, *flags):
    return succeed(*(flag for flag in TINY_LOTTERY if flag != '--quiet'), *flags, root=root).out


def test_quiet_says_nothing(root):
    outcome = lottery(root, '--rewinding_steps=3it')
    assert outcome.out == '' and outcome.err == ''


def test_frame_headings_and_evaluations(root):
    lines = loud(root, '--levels=1', '--rewinding_steps=3it').splitlines()
    assert lines[:3] == ['=' * 82, 'Lottery Ticket Experiment (Replicate 1)', '-' * 82]
    assert f'Output Location: {level(root, 0)}' in lines
    headings = [lines[i + 1] for i, line in enumerate(lines[:-3]) if line == lines[i + 3] == '-' * 82
                and lines[i + 2] == '']
    assert headings == ['Pretraining', 'Pruning Level 0', 'Pruning Level 1']
    assert sum(line.startswith('test\tep') for line in lines) == 2 + 3 + 3
    assert loud(root, '--levels=1', '--rewinding_steps=3it').count('Pruning Level') == 0, 'nothing left to do'


def test_evaluation_only_at_the_ends(root):
    lottery(root, '--evaluate_only_at_end', levels=0)
    iterations = [line.split(',')[1] for line in (level(root, 0) / 'logger').read_text().splitlines()]
    assert iterations == ['0'] * 3 + ['10'] * 3


def test_further_weights_are_saved_where_asked(root):
    lottery(root, '--weight_save_steps=1ep,7it', levels=0)
    assert {'model_ep1_it0.pth', 'model_ep1_it2.pth'} <= artefacts(level(root, 0))


@pytest.mark.parametrize(
    'flags',
    [
        ('--levels=-1',),
        ('--levels=1', '--replicate=0'),
        ('--levels=1', '--replicate=-3'),
        ('--levels=1', '--pruning_fraction=1.0'),
        ('--levels=1', '--rewinding_steps=3ep'),
    ],
)
def test_impossible_requests_write_nothing(root, flags):
    outcome = run_engine(*TINY_LOTTERY, *flags, root=root)
    assert outcome.status == 2 and len(outcome.error_lines) == 1
    assert not root.exists()
