"""How samples show that their sampler has diverged: most of them are far too large to be pictures."""

from torch import Tensor

# Times the size of the data. Of samplers that learn well (laptop preset, ten-step and one-step, untuned and without
# energy) no sample was 3 times as large as the picture beside it, and the median was below 1.5; at 100 times the
# learning rate (ten-step) the median was 4.8 in the fourth step and 7.7 in the fifth.
FAR = 5.0
MOST = 0.5  # of the samples of a step: single ones may stray


class DivergedError(ValueError):
    """A sampler returns values that are no pictures: not finite, or far outside of the data's range."""

    samples_seen = 0  # by training, where that was stopped

    @classmethod
    def at(cls, samples_seen: int, share: float) -> "DivergedError":
        """The error of a training that is stopped there."""
        error = cls(
            f"{share:.0%} of the samples drawn at {samples_seen:,} samples seen are more than {FAR:g} times as large "
            "as the data; training was stopped; lower the learning rates"
        )
        error.samples_seen = samples_seen
        return error


def root_mean_square(x: Tensor) -> Tensor:
    """The size of each sample: (B, ...) -> (B,), float64, in which no square of a finite value overflows."""
    return x.detach().double().flatten(1).square().mean(1).sqrt()


def sample_observations(samples: Tensor, data: Tensor) -> dict[str, Tensor]:
    """Per-sample quantities (B,) to watch, of samples and data (B, ...).

    `sample_size` is the root mean square; `far_off` marks a sample that is far larger than the one of the data beside
    it, but none that is not finite: its gradient is not, either, and such steps are left out.
    """
    size = root_mean_square(samples)
    far = size.isfinite() & (size > FAR * root_mean_square(data))
    return {"sample_size": size, "far_off": far.float()}


def require_near(share: Tensor | float, samples_seen: int) -> None:
    """Raises DivergedError where the share of a step's samples that are far off, over all ranks, is most of them."""
    if share > MOST:
        raise DivergedError.at(samples_seen, float(share))
