"""Sub-networks are what slicing by hand gives; switching leaves the super-network alone; levels obey constraints."""

import pytest
import torch
from torch.nn import functional as F

from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.methods.switching import dynamic_ofa
from dnnshifter_ext.methods.switching.dynamic_ofa import Config, Constraints, DynamicOFA, Elastic, Level, Selection
from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry as models_registry

SIZE = 32  # of images
NUM_STAGES = 5


def vgg(name='cifar_narrowvgg_16_4', seed=0):
    """VGG-16 with 4 to 32 channels, whose batch norms are not those of a new network."""
    torch.manual_seed(seed)
    network = models_registry.get(ModelHparams(name, 'kaiming_normal', 'uniform')).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.bias.data.uniform_(-0.5, 0.5)
    dynamic_ofa.recalibrate(network, batches())
    return network


def batches(num=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 3, SIZE, SIZE, generator=generator), torch.arange(16) % 10) for _ in range(num)]


@pytest.fixture(scope='module')
def network():
    return vgg()


def mixed():
    return Config((0.5, 1.0, 0.25, 0.75, 0.5), (False, False, True, False, True))


def answers(model, images):
    with torch.inference_mode():
        return model(images)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- sub-networks

def test_the_largest_sub_network_is_the_super_network_bit_for_bit(network):
    [(images, _)] = batches(1)
    sub = dynamic_ofa.extract(network, dynamic_ofa.largest(network))
    assert same(state(sub), state(network))
    assert torch.equal(answers(sub, images), answers(network, images))


def test_sorting_changes_the_order_of_channels_and_nothing_else(network):
    [(images, _)] = batches(1)
    before, ordered = state(network), dynamic_ofa.sort_channels(network)
    torch.testing.assert_close(answers(ordered, images), answers(network, images), rtol=1e-4, atol=1e-4)
    assert same(before, state(network)) and not same(before, state(ordered))
    importance = ordered.layers[1].conv.weight.abs().sum((0, 2, 3))  # by which the first layer is sorted
    assert (importance.diff() <= 0).all()
    assert (ordered.fc.weight.abs().sum(0).diff() <= 0).all()


def test_a_sub_network_is_what_slicing_by_hand_gives(network):
    """Widths 4, 8, 16, 32, 32; here the first 2, 8, 4, 24 and 16 channels, stages 3 and 5 without their last layer."""
    [(images, _)] = batches(1)
    num_out = {0: 2, 1: 2, 3: 8, 4: 8, 6: 4, 7: 4, 10: 24, 11: 24, 12: 24, 14: 16, 15: 16}
    x, num_in, pools = images, 3, (2, 5, 9, 13)
    for index in range(17):
        if index in pools:
            x = F.max_pool2d(x, 2, 2)
        elif index in num_out:
            layer, n = network.layers[index], num_out[index]
            x = F.conv2d(x, layer.conv.weight[:n, :num_in], layer.conv.bias[:n], padding=1)
            x = F.batch_norm(x, layer.bn.running_mean[:n], layer.bn.running_var[:n], layer.bn.weight[:n],
                             layer.bn.bias[:n])
            x, num_in = F.relu(x), n
    expected = F.linear(F.avg_pool2d(x, 2).flatten(1), network.fc.weight[:, :16], network.fc.bias)
    sub = dynamic_ofa.extract(network, mixed())
    torch.testing.assert_close(answers(sub, images), expected.detach())
    assert [tuple(layer.conv.weight.shape[:2]) for layer in sub.layers if hasattr(layer, 'conv')] == [
        (2, 3), (2, 2), (8, 2), (8, 8), (4, 8), (4, 4), (24, 4), (24, 24), (24, 24), (16, 24), (16, 16)]


def test_training_goes_through_the_same_sub_network(network):
    [(images, _)] = batches(1)
    sub = dynamic_ofa.extract(network, mixed()).train()
    with torch.no_grad():
        torch.testing.assert_close(dynamic_ofa.forward(network, mixed(), images), sub(images))


def test_depth_is_elastic_where_a_stage_has_three_convolutions(network):
    assert dynamic_ofa.smallest(network) == Config((0.25,) * NUM_STAGES, (False, False, True, True, True))
    assert dynamic_ofa.smallest(network, elastic_depth=False).is_shallow == (False,) * NUM_STAGES
    small = vgg('cifar_narrowvgg_5_8')
    assert not dynamic_ofa.has_elastic_depth(small) and not any(dynamic_ofa.smallest(small).is_shallow)


def test_samples_are_elastic_in_all_that_is_and_depend_on_the_seed(network):
    def draw(elastic_depth=True):
        torch.manual_seed(3)
        return [dynamic_ofa.sample(network, elastic_depth) for _ in range(200)]

    found = draw()
    assert found == draw()
    for stage in range(NUM_STAGES):
        assert {config.widths[stage] for config in found} == set(dynamic_ofa.WIDTHS)
        assert {config.is_shallow[stage] for config in found} == ({False} if stage < 2 else {False, True})
    assert not any(any(config.is_shallow) for config in draw(elastic_depth=False))


# ---- training

def test_all_sub_networks_learn_from_labels_and_teacher(network):
    [(images, labels)] = batches(1)
    student, teacher = vgg(), vgg(seed=1)
    before = state(teacher)
    elastic = Elastic(student, teacher, elastic_depth=True).train()
    logits = elastic(images)
    assert logits.shape == (2 + dynamic_ofa.NUM_RANDOM + 1, 16, 10)
    assert torch.equal(logits[-1], answers(teacher, images))
    torch.testing.assert_close(logits[1], dynamic_ofa.forward(student, dynamic_ofa.smallest(student), images))
    loss = elastic.loss_criterion(logits, labels)
    target = logits[-1].softmax(1)
    by_hand = [-(F.log_softmax(part, 1)[range(16), labels].mean() + (target * F.log_softmax(part, 1)).sum(1).mean())
               for part in logits[:-1]]
    torch.testing.assert_close(loss, sum(by_hand) / len(by_hand))
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert same(before, state(teacher)) and all(parameter.grad is None for parameter in teacher.parameters())
    assert {name for name, _ in elastic.named_parameters()} == {f'network.{name}' for name in before
                                                                if name in dict(student.named_parameters())}


def test_outside_of_training_it_is_the_full_network(network):
    [(images, labels)] = batches(1)
    elastic = Elastic(network, network, elastic_depth=True).eval()
    assert torch.equal(answers(elastic, images), answers(network, images))
    logits = answers(network, images)
    torch.testing.assert_close(elastic.loss_criterion(logits, labels), F.cross_entropy(logits, labels))


# ---- switching

def level(network, config, data=None, accuracy=0.5, latency_ms=1.0):
    sub = dynamic_ofa.extract(network, config)
    if data is not None:
        dynamic_ofa.recalibrate(sub, data)
    return Level(config, dynamic_ofa.statistics(sub), accuracy, latency_ms)


def test_stored_and_recalibrated_statistics_agree(network):
    [(images, _)], data = batches(1, seed=9), batches(8)
    ofa = DynamicOFA(network, [level(network, mixed(), data), level(network, dynamic_ofa.largest(network))], data)
    stored, again = (answers(ofa.switch(0, bn), images) for bn in dynamic_ofa.BN_MODES)
    torch.testing.assert_close(stored, again, rtol=1e-5, atol=1e-5)
    elsewhere = DynamicOFA(network, [level(network, mixed())] * 2, batches(8, seed=1))
    other = answers(elsewhere.switch(0, 'recalibrate'), images)  # on other images
    assert not torch.equal(stored, other)
    assert (stored - other).std() < 0.15 * stored.std()
    uncalibrated = answers(elsewhere.switch(0), images)  # the super-network's statistics do not fit
    assert (stored - uncalibrated).std() > 0.5 * stored.std()


def test_recalibrated_statistics_are_the_means_over_the_batches(network):
    data = batches(3)
    sub = dynamic_ofa.extract(network, mixed())
    outputs = [answers(sub.layers[0].conv, images) for images, _ in data]
    dynamic_ofa.recalibrate(sub, data)
    bn = sub.layers[0].bn
    torch.testing.assert_close(bn.running_mean, sum(output.mean((0, 2, 3)) for output in outputs) / 3)
    torch.testing.assert_close(bn.running_var, sum(output.var((0, 2, 3)) for output in outputs) / 3)
    assert bn.momentum == 0.1 and not sub.training


def test_a_switch_changes_nothing_in_the_super_network(network):
    [(images, _)], data, before = batches(1), batches(), state(network)
    ofa = DynamicOFA(network, [level(network, mixed(), data), level(network, dynamic_ofa.largest(network))], data)
    for index, bn in ((0, 'stored'), (0, 'recalibrate'), (1, 'stored'), (1, 'recalibrate')):
        sub = ofa.switch(index, bn)
        answers(sub, images)
        with torch.no_grad():
            for tensor in sub.state_dict().values():
                tensor.zero_()  # what is done to a sub-network is done to copies
    assert same(before, state(network))


def test_memory_is_the_super_network_and_what_was_copied(network):
    levels = [level(network, mixed(), batches()), level(network, dynamic_ofa.largest(network))]
    stored = sum(tensor.nbytes for each in levels for tensor in each.statistics.values())
    ofa = DynamicOFA(network, levels)
    full, small = size_bytes(network), size_bytes(dynamic_ofa.extract(network, mixed()))
    assert ofa.resident_bytes == full + stored + full  # the largest one is active
    ofa.switch(0)
    assert (ofa.resident_bytes, ofa.peak_bytes) == (full + stored + small, full + stored + full + small)


def test_another_kind_of_statistics_is_refused(network):
    ofa = DynamicOFA(network, [level(network, mixed())])
    with pytest.raises(ValueError, match='bn is stored or recalibrate, not fresh'):
        ofa.switch(0, 'fresh')


# ---- levels

def with_costs(*costs):
    return [Level(None, {}, accuracy, latency_ms) for latency_ms, accuracy in costs]


def test_levels_are_what_nothing_beats():
    levels = with_costs((4, 0.9), (1, 0.5), (2, 0.4), (3, 0.7), (3, 0.8), (5, 0.9))
    best = [(each.latency_ms, each.accuracy) for each in dynamic_ofa.pareto(levels, 6)]
    assert best == [(1, 0.5), (3, 0.8), (4, 0.9)]
    assert [each.latency_ms for each in dynamic_ofa.pareto(levels, 2)] == [1, 4]


def test_candidates_are_different_and_include_the_extremes(network):
    torch.manual_seed(0)
    found = dynamic_ofa.candidates(network, 20)
    assert len(set(found)) == len(found) == 20
    assert {dynamic_ofa.smallest(network), dynamic_ofa.largest(network)} <= set(found)


LEVELS = with_costs((1, 0.5), (2, 0.7), (4, 0.8), (8, 0.9))


def run(observed_ms, constraints, *, active, num=1, num_barred=5):
    """The levels that are active one after another; observed_ms(level) is what an answer takes."""
    selection, found = Selection(active), []
    for _ in range(num):
        selection = dynamic_ofa.select(selection, LEVELS, observed_ms(selection.active), constraints, num_barred)
        found.append(selection.active)
    return found


def as_promised(active):
    return LEVELS[active].latency_ms


def test_it_goes_up_while_the_constraint_is_met_and_down_while_it_is_missed():
    assert run(as_promised, Constraints(5), active=0, num=4) == [1, 2, 2, 2]
    assert run(as_promised, Constraints(1.5), active=3, num=4) == [2, 1, 0, 0]
    assert run(as_promised, Constraints(0.1), active=0) == [0]  # nothing is faster


def test_a_busy_machine_is_taken_into_account():
    assert run(lambda active: 3 * as_promised(active), Constraints(8), active=1, num=2) == [1, 1]  # the next one: 12 ms
    assert run(lambda active: 2 * as_promised(active), Constraints(8), active=1) == [2]


def test_only_levels_that_are_accurate_enough_are_used():
    assert run(as_promised, Constraints(1, accuracy=0.75), active=3, num=3) == [2, 2, 2]  # though both are too slow
    assert run(as_promised, Constraints(100, accuracy=0.85), active=0) == [3]
    with pytest.raises(ValueError, match='no level reaches an accuracy of 0.95'):
        run(as_promised, Constraints(5, accuracy=0.95), active=0)


def test_what_missed_the_constraint_is_not_tried_again_for_a_while():
    """The table promises 4 ms of level 2, which takes 6: without a stop rule it would be entered every other time."""
    def optimistic(active):
        return 6 if active == 2 else as_promised(active)

    found = run(optimistic, Constraints(5), active=1, num=14, num_barred=5)
    assert found == [2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1]
