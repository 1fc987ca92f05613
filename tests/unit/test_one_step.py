""".venv/bin/pytest tests/unit/test_one_step.py

The one-step generator's equations against their definitions, and the task's phases, gradients and use of its inputs.
"""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from nnce_dist.config import schema
from nnce_dist.models.patch_unet import PatchUNet
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.tasks import sid
from nnce_dist.tasks.edm_loss import edm_weight
from nnce_dist.tasks.objective import CONSTANT
from nnce_dist.tasks.one_step import OneStepTask
from nnce_dist.tasks.task import Batch
from nnce_dist.training.seeding import SampleRandom

NUM_CLASSES = 3
SHAPE = (3, 8, 8)


def denoiser(seed: int, dropout: float = 0.0) -> EDMPrecond:
    """A small image denoiser whose zero-initialised layers have been moved away from zero."""
    torch.manual_seed(seed)
    net = EDMPrecond(PatchUNet(num_classes=NUM_CLASSES, patch_size=2, widths=(8, 8), num_blocks=1, dropout=dropout))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def make_task(dropout: float = 0.0, schedule=CONSTANT, **settings) -> OneStepTask:
    networks = denoiser(0), denoiser(1, dropout), denoiser(2, dropout)
    return OneStepTask(*networks, schema.OneStep(**settings), NUM_CLASSES, schedule=schedule)


def make_batch(num: int = 6) -> Batch:
    torch.manual_seed(9)
    return Batch(torch.randn(num, *SHAPE).clamp(-1, 1), torch.arange(num) % NUM_CLASSES)


def updates_of(task: OneStepTask, batch: Batch, samples_seen: int = 0, seed: int = 4) -> list:
    return list(task.updates(batch, SampleRandom.at(seed, range(len(batch))), samples_seen, lambda x: x))


def losses(task: OneStepTask, batch: Batch, samples_seen: int = 0, size: int = 6) -> dict:
    """Loss (B,) and observations of each update, evaluated in micro-batches of `size`."""
    found = {}
    for update in task.updates(batch, SampleRandom.at(4, range(len(batch))), samples_seen, lambda x: x):
        parts = [update.loss(slice(i, i + size)) for i in range(0, update.num_samples, size)]
        found[update.network] = torch.cat([loss for loss, _ in parts]), parts[0][1]
    return found


# --- equations


def test_sigma_rises_from_sigma_min_and_reaches_the_published_range():
    ends = sid.warped_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64), 1000)
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0], dtype=torch.float64))
    sigma = sid.warped_sigma(torch.linspace(0, 1, 50), 800)
    assert (sigma.diff() > 0).all()
    assert sigma[-1].item() == pytest.approx((80 ** (1 / 7) + 0.2 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_identity_loss_equals_its_expanded_form(alpha):
    torch.manual_seed(0)
    x, f_phi, f_psi = torch.randn(3, 5, *SHAPE, dtype=torch.float64)
    weight = torch.rand(5, dtype=torch.float64) + 0.1
    difference = f_phi - f_psi
    expanded = (1 - alpha) * difference.square() + difference * (f_psi - x)
    loss = sid.identity_loss(x, f_phi, f_psi, weight, alpha)
    torch.testing.assert_close(loss, expanded.flatten(1).sum(1) / weight, rtol=1e-12, atol=1e-12)


def test_identity_loss_keeps_its_digits_where_the_three_predictions_are_close():
    """At small sigma x, f_phi and f_psi agree to 1e-4 while being of order 1."""
    torch.manual_seed(0)
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    f_phi, f_psi = x + 1e-4 * torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    x, f_phi, f_psi = x.float(), f_phi.float(), f_psi.float()
    weight = sid.residual_weight(x, f_phi, 1e-5)
    exact = sid.identity_loss(x.double(), f_phi.double(), f_psi.double(), weight.double(), 1.0)
    torch.testing.assert_close(sid.identity_loss(x, f_phi, f_psi, weight, 1.0).double(), exact, rtol=1e-5, atol=1e-9)


def test_residual_weight_is_floored_without_gradient_and_keeps_nan():
    x = torch.tensor([[0.0, 0.0], [1.0, 3.0], [math.nan, 0.0]], requires_grad=True)
    weight = sid.residual_weight(x, torch.zeros(3, 2), 0.05)
    assert weight[:2].tolist() == pytest.approx([0.05, 2.0])
    assert weight[2].isnan()
    assert not weight.requires_grad


def test_critic_and_adversarial_losses_at_magnitude_one_are_cross_entropy():
    torch.manual_seed(0)
    data, fake = 3 * torch.randn(2, 5, 1, 2, 2)
    sigma = torch.rand(5) + 0.1
    b = F.binary_cross_entropy_with_logits(data, torch.ones_like(data)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )
    torch.testing.assert_close(sid.critic_loss(data, fake, sigma, 0.5, 1.0), edm_weight(sigma, 0.5) * b / 2)
    non_saturating = F.binary_cross_entropy_with_logits(fake.clamp(-10, 10), torch.ones_like(fake))
    torch.testing.assert_close(sid.adversarial_loss(fake, 1.0, 10.0), non_saturating)


@pytest.mark.parametrize("m", [1.0, 50.0, 1000.0])
def test_the_generators_gradient_is_the_n2ce_weight_within_the_clip_and_zero_outside(m):
    log_m, clip = math.log(m), 10.0
    f = torch.tensor([log_m - clip - 0.1, log_m - clip + 0.1, 0.0, log_m + clip - 0.1, log_m + clip + 0.1])
    f = f.double().requires_grad_()
    sid.adversarial_loss(f, m, clip).backward()
    expected = -(m / (m + f.detach().exp())) / len(f)
    expected[[0, -1]] = 0.0
    torch.testing.assert_close(f.grad, expected)


def test_at_infinite_magnitude_the_logit_itself_is_clipped():
    f = torch.tensor([-11.0, -9.0, 0.0, 9.0, 11.0], requires_grad=True)
    loss = sid.adversarial_loss(f, math.inf, 10.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert f.grad.tolist() == pytest.approx([0, -0.2, -0.2, -0.2, 0])


def test_a_clip_that_would_silence_an_undecided_critic_is_refused():
    with pytest.raises(ValueError, match="critic_clip=10 must exceed"):
        make_task(critic_noise_magnitude=1e5)
    for critic in ("bce", "none"):
        make_task(critic_noise_magnitude=1e5, critic=critic)
    make_task(critic_noise_magnitude=math.inf)
    with pytest.raises(ValueError, match="critic_clip=10 must exceed"):
        make_task(schedule=schema.MagnitudeSchedule("geometric", start=1e5))


# --- the task


def test_phases_follow_from_the_samples_seen():
    task = make_task(generator_freeze_samples=100, critic_from_samples=200)
    batch = make_batch()
    names = {n: [u.network for u in updates_of(task, batch, n)] for n in (0, 99, 100, 199, 200)}
    assert names[0] == names[99] == ["fake_score"]
    assert names[100] == names[199] == names[200] == ["fake_score", "generator"]
    assert "adversarial_loss" not in losses(task, batch, 199)["generator"][1]
    assert "adversarial_loss" in losses(task, batch, 200)["generator"][1]
    assert "critic_loss" in losses(task, batch, 0)["fake_score"][1]  # the critic is ready when it is first asked


def test_the_adversarial_phase_is_half_and_half():
    batch = make_batch()
    alone, _ = losses(make_task(critic_from_samples=10), batch, 0)["generator"]
    both, seen = losses(make_task(critic_from_samples=10), batch, 10)["generator"]
    adversarial = 0.01 * seen["adversarial_loss"] * math.prod(SHAPE) / seen["residual_weight"]
    torch.testing.assert_close(both, 0.5 * alone + 0.5 * adversarial)
    both, seen = losses(make_task(divide_adversarial_by_weight=False), batch)["generator"]
    torch.testing.assert_close(both, 0.5 * alone + 0.5 * 0.01 * seen["adversarial_loss"] * math.prod(SHAPE))


def test_the_fake_score_learns_denoising_and_criticism_in_one_loss():
    batch = make_batch()
    _, seen = losses(make_task(), batch)["fake_score"]
    both, _ = losses(make_task(critic_loss_scale=0.5), batch)["fake_score"]
    torch.testing.assert_close(both, math.prod(SHAPE) * seen["score_loss"] + 0.5 * seen["critic_loss"])
    alone, only = losses(make_task(critic="none"), batch)["fake_score"]
    torch.testing.assert_close(alone, math.prod(SHAPE) * seen["score_loss"])
    assert "critic_loss" not in only


def gradients_reach(task: OneStepTask) -> set[str]:
    nets = {"teacher": task.teacher} | task.networks
    return {name for name, net in nets.items() if any(p.grad is not None for p in net.parameters())}


@pytest.mark.parametrize("critic", ["n2ce", "bce", "none"])
def test_gradients_reach_only_the_network_that_is_updated(critic):
    task, batch = make_task(critic=critic), make_batch()
    for update in updates_of(task, batch):
        for net in task.networks.values():
            net.zero_grad(set_to_none=True)
        update.loss(slice(0, 6))[0].sum().backward()
        assert gradients_reach(task) == {update.network}
    assert all(p.requires_grad for net in task.networks.values() for p in net.parameters())


def test_the_generators_gradient_goes_through_the_inputs_of_both_networks():
    """Against finite differences of the loss; the floor makes w the constant that it is for the gradient."""
    task, batch = make_task(critic="none", weight_floor=10.0), make_batch()
    weights = task.networks["generator"].model.conv_in.weight
    direction = torch.randn_like(weights)

    def loss() -> torch.Tensor:
        return updates_of(task, batch)[1].loss(slice(0, 6))[0].double().sum()

    slope = (torch.autograd.grad(loss(), weights)[0] * direction).sum()
    values = []
    for step in (-3e-3, 3e-3):
        with torch.no_grad():
            weights.add_(step * direction)
            values.append(loss())
            weights.sub_(step * direction)
    assert slope.item() == pytest.approx((values[1] - values[0]).item() / 6e-3, rel=1e-2)


def test_without_a_critic_the_data_is_never_read():
    batch = make_batch()
    blank = Batch(torch.full_like(batch.x, math.nan), batch.labels)
    for name, (loss, _) in losses(make_task(critic="none"), batch).items():
        assert torch.equal(losses(make_task(critic="none"), blank)[name][0], loss)
    assert losses(make_task(), blank)["fake_score"][0].isnan().any()  # and nothing hides a bad batch


def test_cross_entropy_is_n2ce_at_magnitude_one():
    batch = make_batch()
    bce, one = losses(make_task(critic="bce"), batch), losses(make_task(critic_noise_magnitude=1.0), batch)
    fifty = losses(make_task(), batch)
    for name in bce:
        assert torch.equal(bce[name][0], one[name][0])
        assert not torch.allclose(bce[name][0], fifty[name][0])


def test_micro_batches_change_only_the_batch_normalised_terms():
    batch = make_batch()
    whole, parts = (losses(make_task(critic="none"), batch, size=size) for size in (6, 2))
    for name in whole:
        torch.testing.assert_close(whole[name][0], parts[name][0], rtol=1e-4, atol=1e-4)
    whole, parts = (losses(make_task(), batch, size=size)["fake_score"][0] for size in (6, 2))
    assert not torch.allclose(whole, parts, rtol=1e-3)


def test_every_update_draws_noise_of_its_own_for_every_sample():
    batch = make_batch()
    seen = []
    task = make_task()
    one_step_generate = task.generate
    task.generate = lambda *args: seen.append(one_step_generate(*args)) or seen[-1]
    losses(task, batch)
    fake_step, generator_step = seen
    distances = torch.cdist(torch.cat(seen).flatten(1), torch.cat(seen).flatten(1))
    assert (distances + torch.eye(12) > 0.1).all()
    assert not fake_step.requires_grad and generator_step.requires_grad


def test_modes_dropout_acts_only_in_the_network_that_learns():
    task, batch = make_task(dropout=0.5), make_batch()
    modes = []
    for name, net in (("teacher", task.teacher), *task.networks.items()):
        net.register_forward_pre_hook(lambda net, _, name=name: modes.append((name, net.training)))
        net.with_critic = record_mode(net, name, modes)
        net.eval()
    fake_score, generator = updates_of(task, batch)
    fake_score.loss(slice(0, 6))
    assert set(modes) == {("generator", False), ("fake_score", True)}
    modes.clear()
    generator.loss(slice(0, 6))
    assert set(modes) == {("generator", True), ("fake_score", False), ("teacher", False)}


def record_mode(net, name, modes):
    with_critic = net.with_critic

    def recorded(*args):
        modes.append((name, net.training))
        return with_critic(*args)

    return recorded


def test_a_sample_that_is_not_finite_stays_in_the_loss():
    task, batch = make_task(), make_batch()
    with torch.no_grad():
        task.networks["generator"].model.conv_in.bias[0] = math.nan
    for loss, _ in losses(task, batch).values():
        assert loss.isnan().all()


def test_augmentation_is_drawn_anew_for_generated_and_real_images_and_spares_the_generators_step():
    calls = []

    def augment(x, random):
        calls.append(random.normal(2))
        return x, None

    task, batch = make_task(), make_batch()
    task.augment = augment
    fake_score, generator = updates_of(task, batch)
    fake_score.loss(slice(0, 6))
    assert len(calls) == 2 and not torch.equal(*calls)
    generator.loss(slice(0, 6))
    assert len(calls) == 2


def test_only_the_generator_keeps_an_average():
    optimisers = copy.deepcopy(make_task(ema_half_life=1234.0).optimisers)
    assert optimisers["generator"].ema_half_life == 1234.0
    assert optimisers["fake_score"].ema_half_life is None
