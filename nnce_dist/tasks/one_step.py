"""The one-step generator: score identity distillation with an N2CE critic on the fake score's encoder (SiDA, SiD^2A).

Three copies of an EDM denoiser: the teacher f_phi stays as it is; the fake score f_psi learns to denoise the
generator's samples and, on the same encoder, to tell them from data; the generator G(z) = D(sigma_init z; sigma_init)
learns from both.

Phases, by samples seen: below `generator_freeze_samples` only the fake score and its critic move; from
`critic_from_samples` on the generator's loss is half SiD, half adversarial, before that it is SiD alone. The critic
learns from the start, so that it can tell the sides apart when it is first asked.

The adversarial terms average over the *micro-batch* before per-image weights multiply them, as SiDA's do per device:
the micro-batch is part of the method (16 or 32 in the published runs), and only with it fixed do results not depend on
the number of workers. Losses sum over pixels, so learning rates, clipping and `eps` mean what they mean in those runs.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ..config import schema
from ..models.preconditioning import EDMPrecond
from ..ratio.diagnostics import ratio_observations
from ..samplers.divergence import require_near, sample_observations
from ..samplers.one_step import one_step
from . import sid
from .edm_loss import denoising_loss, lognormal_sigma, noised, one_hot
from .frozen import frozen
from .objective import CONSTANT, NoiseMagnitude
from .settings import optimiser_settings
from .task import Batch, LossAndObservations, OptimiserSettings, Random, Update

Augment = Callable[[Tensor, Random], tuple[Tensor, Tensor | None]]


class OneStepTask:
    """One update of the fake score, then one of the generator, each with noise of its own.

    `generator` and `fake_score` start as copies of the teacher (SiD^2A: `generator` is a finished SiD generator).
    `p_mean` and `p_std` are the teacher's training noise, `augment` its augmentation, used on what the fake score sees.
    The critic's M goes to `critic_noise_magnitude` as `schedule` says. Labels are those of the batch; without a critic
    nothing else of the batch is used. The teacher must be on the device of the run: the loop moves only networks that
    learn.
    """

    def __init__(
        self,
        teacher: EDMPrecond,
        fake_score: EDMPrecond,
        generator: EDMPrecond,
        settings: schema.OneStep,
        num_classes: int,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        augment: Augment | None = None,
        schedule: schema.MagnitudeSchedule = CONSTANT,
    ):
        nce = settings.critic == "bce"
        final = 1.0 if nce else settings.critic_noise_magnitude
        self.magnitude = NoiseMagnitude(final, CONSTANT if nce else schedule, settings.training.samples)
        self.has_critic = settings.critic != "none"
        if self.has_critic:
            for m in self.magnitude.milestones:
                sid.check_clip(m, settings.critic_clip)
        self.teacher = teacher.eval().requires_grad_(False)
        self.networks = {"fake_score": fake_score, "generator": generator}
        self.optimisers: dict[str, OptimiserSettings] = {
            "fake_score": optimiser_settings(settings.fake_score),
            "generator": optimiser_settings(settings.generator, settings.ema_half_life),
        }
        self.settings, self.num_classes, self.augment = settings, num_classes, augment
        self.p_mean, self.p_std = p_mean, p_std

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """The fake score's update, then the generator's once it is no longer frozen.

        Raises DivergedError between the two when the samples are no pictures any more.
        """
        labels, m = one_hot(batch.labels, self.num_classes), self.magnitude.at(samples_seen)

        def on(loss: Callable[..., LossAndObservations], part: slice) -> LossAndObservations:
            return loss(m, batch.x[part], None if labels is None else labels[part], random[part])

        far = []

        def on_fakes(part: slice) -> LossAndObservations:
            loss, seen = on(self.fake_score_loss, part)
            far.append(seen["far_off"].sum())
            return loss, seen

        yield Update("fake_score", on_fakes, len(batch))
        require_near(mean_over_ranks(sum(far) / len(batch)), samples_seen)
        if samples_seen >= self.settings.generator_freeze_samples:
            adversarial = self.has_critic and samples_seen >= self.settings.critic_from_samples
            yield Update("generator", partial(on, partial(self.generator_loss, adversarial)), len(batch))

    def generate(self, shape: tuple[int, ...], labels: Tensor | None, random: Random) -> Tensor:
        """x_g = G(z) (B, *shape)."""
        generator = self.networks["generator"]
        return one_step(lambda x, sigma: generator(x, sigma, labels), shape, self.settings.sigma_init, random)

    def fake_score_loss(self, m: float, x: Tensor, labels: Tensor | None, random: Random) -> LossAndObservations:
        """Denoising of generated samples (B,), plus the critic's loss at M = m between them and the data x (B, ...)."""
        fake_score = self.networks["fake_score"].train()
        self.networks["generator"].eval()
        with torch.no_grad():
            x_g = self.generate(x.shape[1:], labels, random)
        about_samples = sample_observations(x_g, x)
        sigma = lognormal_sigma(random.normal(), self.p_mean, self.p_std)
        noise = random.normal(*x.shape[1:])

        def seen_noisy(clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            clean, augment_labels = self.augment(clean, random) if self.augment else (clean, None)
            return clean, *fake_score.with_critic(noised(clean, sigma, noise), sigma, labels, augment_labels)

        x_g, denoised, log_ratio_fake = seen_noisy(x_g)
        loss = denoising_loss(denoised, x_g, sigma, fake_score.sigma_data)
        observations = {"score_loss": loss / x[0].numel(), **about_samples}
        if self.has_critic:
            _, _, log_ratio_data = seen_noisy(x)
            critic = sid.critic_loss(log_ratio_data, log_ratio_fake, sigma, fake_score.sigma_data, m)
            loss = loss + self.settings.critic_loss_scale * critic
            observations |= self.critic_observations(log_ratio_data, log_ratio_fake, m) | {"critic_loss": critic}
        return loss, observations | {"loss": loss}

    def critic_observations(self, log_ratio_data: Tensor, log_ratio_fake: Tensor, m: float) -> dict[str, Tensor]:
        """The state of the critic's ratio, averaged over places (B,)."""
        seen = ratio_observations(log_ratio_data, log_ratio_fake, m)
        return {name: values.flatten(1).mean(1) for name, values in seen.items()}

    def generator_loss(
        self, adversarial: bool, m: float, x: Tensor, labels: Tensor | None, random: Random
    ) -> LossAndObservations:
        """SiD's loss (B,), or half of it and half of the adversarial loss; of x (B, ...) only the shape is used."""
        settings = self.settings
        self.networks["generator"].train()
        x_g = self.generate(x.shape[1:], labels, random)
        sigma = sid.warped_sigma(random.uniform(), settings.t_max)
        x_t = noised(x_g, sigma, random.normal(*x.shape[1:]))
        f_phi = self.teacher(x_t, sigma, labels)
        with frozen(self.networks["fake_score"]) as fake_score:
            f_psi, log_ratio = fake_score.with_critic(x_t, sigma, labels)
        weight = sid.residual_weight(x_g, f_phi, settings.weight_floor)
        identity = sid.identity_loss(x_g, f_phi, f_psi, weight, settings.alpha)
        loss = settings.generator_loss_scale * identity
        observations = {"identity_loss": identity, "residual_weight": weight}
        if adversarial:
            adversarial_loss = sid.adversarial_loss(log_ratio, m, settings.critic_clip)
            divisor = weight if settings.divide_adversarial_by_weight else torch.ones_like(weight)
            loss = 0.5 * loss + 0.5 * settings.adversarial_scale * adversarial_loss * x_g[0].numel() / divisor
            observations["adversarial_loss"] = adversarial_loss.expand(len(x))
        return loss, observations | {"loss": loss}

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing outside the networks; the phases follow from the samples seen."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""
