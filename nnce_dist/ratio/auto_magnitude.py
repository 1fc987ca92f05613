"""M=auto: the noise magnitude chosen and adapted in training, from per-sample log-ratios f = ln r alone.

A data sample weighs w+ = M/(M+r) in the gradient and a noise sample w- = M r/(M+r) (`objectives`). Three facts decide:

1. *Travel.* Where r >> M, w+ is about M/r: NCE's gradient dies out exponentially in f long before f is right, while a
   large M keeps it. So while f has a way to go, M is at least the smallest M_f with

       E_data[M_f / (M_f + r)] >= c.                                                                          (floor)

   ln M_f needs no search: ln M_f <- ln M_f + (c - E_data[w+ at M_f]), a Robbins-Monro step per batch, settles there.
   c is below 1/2, so that M_f is 1 at r = 1, where M = 1 weighs data 1/2 and a larger M buys nothing.

2. *Arrival.* Every M has the same optimum, and there M = 1 has the least variance: for a model f = theta' phi the
   Hessian is H = E_data[w+ phi phi'], the second moment of the gradients of pairs V = E_data[w+ w+ (1+r) phi phi'];
   V = H at M = 1 and grows to M H. Arrival shows when f, stretched about the mid-point m of its two means, gains no
   more. With z = f - m, and the weights of M = 1 whatever M trains (they are at most 1, so no sample dominates),

       u = E_data[z/(1+r)] - E_noise[z r/(1+r)],   v = E_data[|z|/(1+r)] + E_noise[|z| r/(1+r)],   |u| <= v.

   u is minus NCE's derivative along z: positive while f is too flat, 0 at the optimum, negative beyond. On the samples
   that were fitted it is too high: where they have u = 0, at theta_n, fresh ones have on average
   -(theta_n - theta)' H (theta_n - theta), that is -tr(H^-1 V)/n = -p/n for p parameters and n pairs (the correction
   of Takeuchi and Akaike). The deficit of confidence is

       d = running mean of (u - p/n) / v, clipped to [-1, 1],                                                (deficit)

   over the last 10 steps and tenth of the run, so that its noise, which would keep M up after arrival, dies out.

3. *Variance.* M <= C sqrt(n) with C = 1, the paper's bound at its cautious end, and 10^4 where data never repeat: one
   noise sample can weigh M against a whole batch.                                                        (ceiling)

Together M = M_f^g with g = clip(d / s, 0, 1): M_f while under-confident, 1 on arrival. The loss is that of a fixed M,
times nothing: where M stays 1, training is NCE's, bit for bit.

No extra pass, four numbers of state. Each step's M comes from the steps before it, and on data that do not repeat all
statistics are of samples that no step has seen. The constants were chosen on the design half of
tests/benchmarks/ratio_bed.py; pipelines/results/auto-magnitude.md has what came of it, losses included.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

WEIGHT_FLOOR = 0.4  # c; four fifths of a data sample's weight at r = 1 under NCE
FULL_DEFICIT = 0.1  # s: from this d on, M is the floor's
SHORTEST_WINDOW = 10.0  # steps over which d is averaged at first,
WINDOW = 0.1  # and the part of all steps so far that is added to them
CEILING = 1e4  # of M, where data never repeat


@dataclass(frozen=True)
class AutoState:
    """What the rule knows, scalars or one entry per packed trial; starts as zeros, which is M = 1."""

    log_floor: Tensor  # ln M_f
    deficit: Tensor  # d, in [-1, 1]
    midpoint: Tensor  # m of the step before
    steps: Tensor  # that have been seen

    @classmethod
    def start(cls, *trials: int) -> "AutoState":
        """Before the first step."""
        return cls(*(torch.zeros(trials) for _ in fields(cls)))


@dataclass(frozen=True)
class Evidence:
    """What is known of the run before it starts: the ceiling of M, and p/n."""

    log_ceiling: float
    optimism: float


def evidence(num_parameters: float, num_samples: float) -> Evidence:
    """From p and n: `num_samples` counts the distinct pairs of data and noise, infinite when none is seen twice."""
    return Evidence(math.log(min(math.sqrt(num_samples), CEILING)), num_parameters / num_samples)


def log_magnitude(state: AutoState) -> Tensor:
    """ln M of the next step: g ln M_f."""
    return (state.deficit / FULL_DEFICIT).clamp(0, 1) * state.log_floor


def observe(state: AutoState, log_ratio_data: Tensor, log_ratio_noise: Tensor) -> dict[str, Tensor]:
    """Per pair, what `advance` needs the mean of: f on both sides (..., B), the leading dimensions those of the state.

    The log-ratios are those of the step's own forward pass, before its update.
    """
    f_data, f_noise = log_ratio_data.detach().float(), log_ratio_noise.detach().float()
    midpoint = state.midpoint.unsqueeze(-1)
    pull_data = torch.sigmoid(-f_data) * (f_data - midpoint)
    pull_noise = torch.sigmoid(f_noise) * (f_noise - midpoint)
    return {
        "floor_weight": torch.sigmoid(state.log_floor.unsqueeze(-1) - f_data),
        "stretch": pull_data - pull_noise,
        "stretch_size": pull_data.abs() + pull_noise.abs(),
        "midpoint": (f_data + f_noise) / 2,
    }


def advance(state: AutoState, means: dict[str, Tensor], known: Evidence) -> AutoState:
    """The state after a step, from the means over its global batch of what `observe` gave.

    A step whose means are not finite, or whose f is constant, changes nothing.
    """
    seen = ((means["stretch"] - known.optimism) / means["stretch_size"]).clamp(-1, 1)
    after = (
        (state.log_floor + WEIGHT_FLOOR - means["floor_weight"]).clamp(0, known.log_ceiling),
        state.deficit + (seen - state.deficit) / (SHORTEST_WINDOW + WINDOW * state.steps),
        means["midpoint"],
        state.steps + 1,
    )
    before = (state.log_floor, state.deficit, state.midpoint, state.steps)
    usable = torch.stack(after).isfinite().all(0)
    return AutoState(*(torch.where(usable, new, old) for new, old in zip(after, before, strict=True)))
