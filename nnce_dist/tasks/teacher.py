"""The teacher: an EDM denoiser trained on the data (method of Karras et al. 2022)."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from ..config import schema
from ..models.preconditioning import EDMPrecond
from .edm_loss import denoising_loss, lognormal_sigma, noised, one_hot
from .settings import optimiser_settings
from .task import Batch, LossAndObservations, OptimiserSettings, Random, Update


class TeacherTask:
    """One denoising update per batch; the EMA of the network is the teacher.

    `augment` maps (images (B, C, H, W), Random) to augmented images and their labels; None leaves the data as it is.
    """

    def __init__(
        self, denoiser: EDMPrecond, settings: schema.Teacher, num_classes: int, augment: Callable | None = None
    ):
        self.networks = {"denoiser": denoiser}
        self.optimisers: dict[str, OptimiserSettings] = {
            "denoiser": optimiser_settings(settings.optimiser, settings.ema_half_life, settings.ema_rampup)
        }
        self.settings, self.num_classes, self.augment = settings, num_classes, augment

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """One optimiser step."""

        def loss(part: slice) -> LossAndObservations:
            labels = None if batch.labels is None else batch.labels[part]
            per_image = self.loss(batch.x[part], labels, random[part])
            return per_image, {"loss": per_image / batch.x[0].numel()}

        yield Update("denoiser", loss, len(batch))

    def loss(self, x: Tensor, labels: Tensor | None, random: Random) -> Tensor:
        """Weighted denoising loss per image (B,) at random noise levels."""
        denoiser, augment_labels = self.networks["denoiser"], None
        if self.augment is not None:
            x, augment_labels = self.augment(x, random)
        sigma = lognormal_sigma(random.normal(), self.settings.p_mean, self.settings.p_std)
        x_t = noised(x, sigma, random.normal(*x.shape[1:]))
        denoised = denoiser(x_t, sigma, one_hot(labels, self.num_classes), augment_labels)
        return denoising_loss(denoised, x, sigma, denoiser.sigma_data)

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing outside the network."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""
