"""Run: pytest tests/unit/test_ten_step.py

The ten-step task yields DxMI's updates in their order, each with the loss of its equation.
"""

import math
from dataclasses import replace

import pytest
import torch
from toys import Silent

from nnce_dist.config.schema import Objective, TenStep, Training
from nnce_dist.models.mlp import HarmonicMLP, ValueMLP
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.samplers.ten_step import TenStepSampler
from nnce_dist.tasks import dxmi
from nnce_dist.tasks.task import Batch
from nnce_dist.tasks.ten_step import TenStepTask
from nnce_dist.training.loop import iterate
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.seeding import SampleRandom
from nnce_dist.training.state import TrainState, parameter_groups
from nnce_dist.training.step import apply_update

T, B, CLASSES = 5, 6, 3
PLAIN = TenStep(num_steps=T, skip=2, sampler_batches=T)


def make(settings=PLAIN, objective=None):
    torch.manual_seed(0)
    sampler = TenStepSampler(EDMPrecond(HarmonicMLP(width=8, num_classes=CLASSES)), dxmi.few_step_schedule(settings))
    value = ValueMLP(width=8, num_classes=CLASSES)
    return TenStepTask(sampler, value, settings, objective or Objective(), CLASSES)


def batch(size=B):
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(size, 2, generator=generator), torch.arange(size) % CLASSES)


def updates(task, samples_seen=0, mean_over_ranks=lambda mean: mean):
    """All updates of an iteration, none applied."""
    return list(task.updates(batch(), SampleRandom.at(3, range(B)), samples_seen, mean_over_ranks))


def states_of(task):
    """The states that the task rolls out: the same sampler on the same streams."""
    labels = torch.nn.functional.one_hot(batch().labels, CLASSES).float()
    return task.networks["sampler"].roll_out((2,), SampleRandom.at(3, range(B)), labels)


def whole(update):
    return update.loss(slice(0, B))


def gradient(loss, network):
    return torch.autograd.grad(loss.mean(), list(network.parameters()), allow_unused=True)


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({}, ["value"] * (1 + T) + ["sampler"] * T),
        ({"sampler_batches": 1}, ["value"] * (1 + T) + ["sampler"]),
        ({"value_steps": "joint"}, ["value"] + ["sampler"] * T),
        ({"value_steps": "joint", "sampler_steps": "joint"}, ["value", "sampler"]),
    ],
)
def test_order(changes, order):
    assert [u.network for u in updates(make(replace(PLAIN, **changes)))] == order


def test_sampler_waits_for_the_value():
    task = make(replace(PLAIN, value_warmup_samples=100))
    assert {u.network for u in updates(task, 99)} == {"value"}
    assert {u.network for u in updates(task, 100)} == {"value", "sampler"}


def test_velocity_recursion_over_ranks_and_restore():
    task = make()
    start, steps = task.velocity.clone(), states_of(task).diff(dim=0).square().mean((1, 2))
    torch.testing.assert_close(start, dxmi.few_step_schedule(PLAIN).noise.square().float())
    updates(task, mean_over_ranks=lambda mean: 3 * mean)
    torch.testing.assert_close(task.velocity, 0.99 * start + 0.01 * 3 * steps)
    other = make()
    other.load_extra_state(task.extra_state())
    assert torch.equal(other.velocity, task.velocity)


def test_a_roll_out_that_is_not_finite_leaves_the_velocity_as_it_was():
    task = make()
    updates(task)
    before = task.velocity.clone()
    updates(task, mean_over_ranks=lambda mean: torch.where(torch.arange(T) == 1, math.nan, mean) if mean.ndim else mean)
    assert torch.equal(task.velocity, before)
    updates(task)
    assert task.velocity.isfinite().all() and not torch.equal(task.velocity, before)


def test_a_skipped_iteration_moves_nothing():
    task = make()
    with torch.no_grad():
        task.networks["sampler"].log_noise[0] = math.inf
    state, training = TrainState.of(task), Training(samples=B, batch=B, max_skipped_steps=99)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    iterate(state, batch(), training, 3, LocalRuntime("cpu"), Silent())
    assert state.skipped_steps == 1 + T + T
    torch.testing.assert_close(state.tensors(), before, rtol=0, atol=0)


@pytest.mark.parametrize("m", [1.0, 100.0, math.inf])
@pytest.mark.parametrize(("hold", "share"), [(False, lambda m: 1.0), (True, lambda m: 1 / (1 + 1 / m))])
def test_energy_update_is_n2ce_with_its_regulariser(m, hold, share):
    task = make(objective=Objective(noise_magnitude=m, ratio_regularisation=0.7, hold_regularisation=hold))
    value = task.networks["value"]
    e_data, e_fake = value(batch().x).double(), value(states_of(task)[-1]).double()
    if math.isinf(m):
        sides = e_data + (-e_fake).exp()
    else:
        softplus, shift = torch.nn.functional.softplus, math.log(m)
        sides = softplus(e_data + shift) - shift + m * softplus(-e_fake - shift)
    expected = sides + 0.7 * share(m) * (e_data**2 + e_fake**2)
    loss, observations = whole(updates(task)[0])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for actual, reference in zip(gradient(loss, value), gradient(expected, value), strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(observations["log_ratio_data"].double(), -e_data)
    torch.testing.assert_close(observations["log_ratio_noise"].double(), -e_fake)


def test_values_regress_on_the_next_state_from_the_data_backwards():
    task = make(replace(PLAIN, time_cost=0.25, time_cost_sigmoid=2.0))
    value, states = task.networks["value"], states_of(task)
    for t, update in zip(reversed(range(T)), updates(task)[1 : 1 + T], strict=True):
        cost = 0.25 + 2 * (1 / (1 + math.exp(t - T / 2)) - 1 / (1 + math.exp(t + 1 - T / 2)))
        target = (value(states[t + 1]) + cost).detach()
        expected = (value(states[t]) - target).square()
        loss, observations = whole(update)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(observations["temporal_difference"], loss.detach())
        for actual, reference in zip(gradient(loss, value), gradient(expected, value), strict=True):
            torch.testing.assert_close(actual, reference)


def test_joint_value_update_is_the_energy_plus_the_mean_difference():
    sequential = [whole(u)[0] for u in updates(make())[: 1 + T]]
    joint = whole(updates(make(replace(PLAIN, value_steps="joint", value_weight=0.3)))[0])[0]
    torch.testing.assert_close(joint, sequential[0] + 0.3 * torch.stack(sequential[1:]).mean(0))


def test_joint_sampler_update_is_the_mean_of_its_transitions():
    one_at_a_time = [whole(u)[0] for u in updates(make(replace(PLAIN, energy_weight=0, tau2=0)))[-T:]]
    joint = whole(updates(make(replace(PLAIN, energy_weight=0, tau2=0, sampler_steps="joint")))[-1])[0]
    torch.testing.assert_close(joint, torch.stack(one_at_a_time).mean(0))


def test_each_update_moves_its_own_network_only():
    task = make()
    state = TrainState.of(task)
    for update in task.updates(batch(), SampleRandom.at(3, range(B)), 0, lambda mean: mean):
        before = {name: [p.clone() for p in net.parameters()] for name, net in task.networks.items()}
        assert apply_update(update, state.trainees[update.network], LocalRuntime("cpu"), B, 0, lambda *_: None)
        for name, network in task.networks.items():
            moved = [not torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True)]
            assert any(moved) == (name == update.network)


def test_sampler_loss_leaves_no_gradient_in_the_value():
    task = make()
    whole(updates(task)[-1])[0].sum().backward()
    assert all(p.grad is None for p in task.networks["value"].parameters())
    assert all(p.requires_grad for p in task.networks["value"].parameters())
    assert any(p.grad.abs().sum() > 0 for p in task.networks["sampler"].parameters())


def test_sampler_goes_down_the_value():
    """With the tau terms off, the loss is V(x') and its gradient that of the mean value after a transition."""
    task = make(replace(PLAIN, tau1=0, tau2=0, sampler_steps="joint"))
    state, update = TrainState.of(task), updates(task)[-1]
    before = whole(update)[1]["value"].mean()
    for _ in range(20):
        apply_update(update, state.trainees["sampler"], LocalRuntime("cpu"), B, 0, lambda *_: None)
    assert whole(update)[1]["value"].mean() < before


def test_energy_weight_zero_is_blind_to_the_value():
    task = make(replace(PLAIN, energy_weight=0))
    update, sampler = updates(task)[-1], task.networks["sampler"]
    first = gradient(whole(update)[0], sampler)
    with torch.no_grad():
        for p in task.networks["value"].parameters():
            p.mul_(3)
    for a, b in zip(first, gradient(whole(update)[0], sampler), strict=True):
        torch.testing.assert_close(a, b)


def test_entropy_pushes_each_learned_noise_up_until_skip():
    task = make(replace(PLAIN, energy_weight=0, tau1=0.3, tau2=0, sampler_steps="joint"))
    loss = whole(updates(task)[-1])[0]
    (push,) = torch.autograd.grad(loss.mean(), task.networks["sampler"].log_noise)
    torch.testing.assert_close(push, torch.tensor([-0.3 / T] * (T - 2) + [0.0, 0.0]))


def test_running_cost_divides_by_the_floored_velocity():
    x, x_next, v = torch.zeros(2, 3), torch.tensor([[1.0, 2, 2], [3, 0, 0]]), torch.tensor([0.5, 2.0])
    torch.testing.assert_close(dxmi.running_cost(x, x_next, v), torch.tensor([3.0, 0.75]))
    task = make(replace(PLAIN, velocity_floor=0.04, velocity_decay=1, skip=0, energy_weight=0, tau1=0, tau2=1))
    with torch.no_grad():
        task.velocity.zero_()
    states = states_of(task)
    for update in updates(task)[-T:]:
        loss, observations = whole(update)
        assert loss.isfinite().all() and torch.equal(loss, observations["running_cost"])
    assert states.isfinite().all()


def test_every_sample_visits_every_step_once_in_its_own_order():
    seen = torch.stack([whole(u)[1]["log_noise_scale"] for u in updates(make())[-T:]], dim=1)  # (B, T)
    scales = dxmi.few_step_schedule(PLAIN).noise.clamp(min=1e-4).log().float()
    torch.testing.assert_close(seen.sort(1).values, scales.sort().values.expand(B, T))
    assert len({tuple(row) for row in seen.tolist()}) > 1


def test_samples_do_not_depend_on_their_batch():
    """Two ranks with half of the samples each see the losses of one process, given the same mean over ranks."""
    means, data = [], batch()
    together = [whole(u)[0] for u in updates(make(), mean_over_ranks=lambda mean: means.append(mean) or mean)]

    def rank(part):
        random, mine = SampleRandom.at(3, range(part.start, part.stop)), Batch(data.x[part], data.labels[part])
        known = iter(means)
        task_updates = make().updates(mine, random, 0, lambda _: next(known))
        return [u.loss(slice(0, len(mine)))[0] for u in task_updates]

    for expected, first, second in zip(together, rank(slice(0, 2)), rank(slice(2, B)), strict=True):
        torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-4, atol=1e-5)


def test_micro_batches_see_the_same_losses():
    for update in updates(make()):
        loss = whole(update)[0]
        parts = torch.cat([update.loss(slice(0, 2))[0], update.loss(slice(2, B))[0]])
        torch.testing.assert_close(parts, loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_classes_condition_the_sampler_and_the_value_if_asked(conditional):
    task = make(replace(PLAIN, value_conditional=conditional))
    value, states = task.networks["value"], states_of(task)
    labels = torch.nn.functional.one_hot(batch().labels, CLASSES).float() if conditional else None
    torch.testing.assert_close(whole(updates(task)[0])[1]["log_ratio_noise"], -value(states[-1], labels).detach())
    other = task.networks["sampler"].roll_out((2,), SampleRandom.at(3, range(B)), None)
    assert not torch.allclose(other[-1], states[-1])


def test_noise_scales_learn_at_their_own_rate():
    task = make(replace(PLAIN, log_sigma_lr_scale=10))
    groups = parameter_groups(task.networks["sampler"], task.optimisers["sampler"])
    assert {g["lr_scale"]: len(g["params"]) for g in groups}[10] == 1


def test_more_minibatches_than_transitions_are_refused():
    with pytest.raises(ValueError, match="sampler_batches=6"):
        make(replace(PLAIN, sampler_batches=6))
