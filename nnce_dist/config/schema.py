"""Every setting of a run: a dataclass per part, a comment per field. Published numbers live in `pipelines/presets/`.

This module imports nothing heavy: configuration errors must be found in seconds, before torch or Ray is loaded.
Ranges are declared beside the field with `ranged`; `config/load.py` checks them.
"""

from dataclasses import dataclass, field
from typing import Any


def ranged(default: Any, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A field with its closed range [low, high], or its allowed words; checked by `config.load`."""
    return field(default=default, metadata={"low": low, "high": high, "choices": choices})


def ranged_list(low: float, high: float) -> Any:
    """A list, empty by default, whose items have a closed range."""
    return field(default_factory=list, metadata={"low": low, "high": high})


def part(kind: type) -> Any:
    """A nested part of the configuration."""
    return field(default_factory=kind)


@dataclass
class Run:
    """Names and places."""

    name: str = "imagenet64"  # results go to <dir>/<name>; lower case, digits, '-' (also used as a label)
    dir: str = "runs"  # a local folder
    mirror: str = ""  # s3://bucket/prefix (see data.s3): keeps a copy of the run, from which any machine goes on
    seed: int = ranged(0, 0, 2**31 - 1)  # every random draw of the run follows from it
    verbose: bool = False  # show Ray's own messages
    allow_drift: list[str] = field(default_factory=list)  # settings that may differ when a run goes on
    stages: list[str] = field(
        default_factory=lambda: ["teacher", "ten_step", "one_step"],
        metadata={"choices": ("teacher", "ten_step", "one_step", "density_ratio")},
    )  # each is followed by its evaluation; the report comes last; density_ratio stands alone


@dataclass
class Workers:
    """Where and how training processes run."""

    runtime: str = ranged("ray", choices=("ray", "local"))  # jobs as trials on Ray, or one by one in this process
    count: int = ranged(1, 1, 4096)  # processes per training run
    min: int = ranged(0, 0, 4096)  # go on with so few when nodes are lost, more micro-batches each; 0: always `count`
    gpus: float = ranged(0, 0, 8)  # per worker; 0 trains on the CPU
    cpus: float = ranged(1, 0.1, 256)  # per worker
    threads: int = ranged(1, 1, 256)  # torch threads per process
    precision: str = ranged("bfloat16", choices=("float32", "bfloat16"))  # inside networks; losses stay float32
    start_timeout: float = ranged(300, 1)  # seconds to wait for the resources before giving up
    collective_timeout: float = ranged(300, 1)  # seconds a rank waits for the others
    stall_timeout: float = ranged(600, 1)  # seconds without progress until a process is ended and started again
    grace: float = ranged(60, 1)  # seconds for saving after SIGTERM or Ctrl-C, before the run ends anyway
    restarts: int = ranged(2, 0)  # times that crashed workers are started again, from the newest checkpoint


@dataclass
class S3:
    """An S3-compatible store; credentials come from the standard chain only."""

    endpoint_url: str = ""  # empty: AWS
    profile: str = ""  # a profile of the standard credential chain; never a key
    addressing: str = ranged("auto", choices=("auto", "path", "virtual"))
    timeout: float = ranged(60, 0.1)  # seconds until a request of at most 64 MiB, retries included, is given up


@dataclass
class MadeImages:
    """The pictures that the project draws itself when no shards are given."""

    train: int = ranged(4096, 8)
    val: int = ranged(1024, 8)
    shard_size: int = ranged(512, 1)
    seed: int = ranged(0, 0)


@dataclass
class Data:
    """Training and held-out pictures."""

    train: str = ""  # shard pattern with braces, a path or s3://; empty: draw own pictures
    val: str = ""
    num_classes: int = ranged(8, 1)
    image_size: int = ranged(64, 8)
    resize: bool = False  # resize other sizes (box, then centre crop) instead of refusing them
    on_error: str = "fail"  # at a sample that cannot be read; skip(k): another takes its place, for at most k samples
    flip: bool = True  # horizontal flips of half the training images
    cache_dir: str = ""  # local copies of s3 shards; empty: <run dir>/cache
    cache_bytes: int = ranged(2**38, 0)  # room for them on a node; 0: no bound
    shuffle_bytes: int = ranged(0, 0)  # samples are mixed over shards of so many bytes; 0: over all that fit
    loader_workers: int = ranged(1, 0, 64)  # decode ahead: processes, or threads where the decoded set fits 1 GiB
    s3: S3 = part(S3)
    made: MadeImages = part(MadeImages)


@dataclass
class Network:
    """The denoiser's architecture."""

    kind: str = ranged("patch_unet", choices=("patch_unet", "ddpmpp", "adm"))
    widths: list[int] = field(default_factory=lambda: [32, 128])  # patch_unet: channels per level
    num_blocks: int = ranged(1, 1)  # patch_unet: residual blocks per level
    patch_size: int = ranged(4, 1)  # patch_unet
    sigma_data: float = ranged(0.5, 1e-6)
    dropout: float = ranged(0.0, 0, 0.99)


@dataclass
class Optimiser:
    """Adam or RAdam on one network."""

    kind: str = ranged("adam", choices=("adam", "radam"))
    lr: float = ranged(1e-3, 0)
    beta1: float = ranged(0.9, 0, 1)
    beta2: float = ranged(0.999, 0, 1)
    eps: float = ranged(1e-8, 0)
    warmup_samples: int = ranged(0, 0)
    decay_fraction: float = ranged(0.0, 0, 1)  # last part of the run with the rate falling linearly to 0
    clip_norm: float = ranged(0.0, 0)  # 0: no clipping
    clip_value: float = ranged(0.0, 0)  # 0: no clipping


@dataclass
class Training:
    """Length and bookkeeping of one stage; everything counts in samples seen."""

    samples: int = ranged(0, 0)  # length of the stage
    batch: int = ranged(64, 1)  # global batch, whatever the number of workers
    micro_batch: int = ranged(0, 0)  # per process and backward pass; 0: the rank's whole share
    log_every: int = ranged(1024, 1)  # samples between log lines
    checkpoint_every: int = ranged(0, 0)  # samples between checkpoints; 0: only at the end and on a stop
    keep_last: int = ranged(2, 1)  # newest checkpoints that stay; an older one goes once a newer one is committed
    keep_best: str = ""  # also the one with the lowest of this figure of metrics.jsonl, e.g. denoiser/loss; empty: none
    keep_bytes: int = ranged(0, 0)  # budget of a job's checkpoints, also in run.mirror; the newest stays; 0: no limit
    max_skipped_steps: int = ranged(0, 0)  # non-finite steps tolerated before the run stops
    rollback: bool = False  # before it stops, once: back to the last checkpoint, on with half the learning rate


@dataclass
class Teacher:
    """The EDM denoiser that everything starts from (method section 1)."""

    weights: str = (
        ""  # safetensors of a trained EDM denoiser; "shipped": the one for the made pictures; empty: train one
    )
    p_mean: float = -1.2  # ln sigma ~ N(p_mean, p_std^2) (EDM, table 1)
    p_std: float = ranged(1.2, 1e-3)
    ema_half_life: float = ranged(500_000, 0)  # samples
    ema_rampup: float = ranged(0.05, 0)  # the half-life is at most this fraction of the samples seen
    augment: bool = False  # EDM's geometric augmentation (paper presets)
    steps: int = ranged(18, 2)  # Heun steps of the teacher "at its full number of steps"
    training: Training = part(Training)
    optimiser: Optimiser = part(Optimiser)


@dataclass
class MagnitudeSchedule:
    """M on its way to `objective.noise_magnitude`, or `one_step.critic_noise_magnitude` (ratio/magnitude.py)."""

    # auto (also spelt objective.noise_magnitude=auto, and ended by a number there): ratio/auto_magnitude.py chooses,
    # noise_magnitude is not used; the one-step critic stays at its own M
    kind: str = ranged("constant", choices=("constant", "geometric", "cosine", "piecewise", "auto"))
    start: float = ranged(1.0, 1)  # geometric, cosine: M at the first sample
    until: float = ranged(1.0, 1e-6, 1)  # geometric, cosine: fraction of training after which M stays
    fractions: list[float] = ranged_list(0, 1)  # piecewise: fractions of training at which M changes, ascending
    magnitudes: list[float] = ranged_list(1, float("inf"))  # piecewise: M before each of them


@dataclass
class Objective:
    """What a log-ratio is learned with (ratio/objectives.py): the ten-step energy, the density ratio."""

    kind: str = ranged("n2ce", choices=("n2ce", "reweighted_bce"))
    noise_magnitude: float = ranged(100.0, 1, float("inf"))  # M in [1, inf]; 1 is NCE, inf is NWJ
    schedule: MagnitudeSchedule = part(MagnitudeSchedule)
    ratio_regularisation: float = ranged(1.0, 0)  # gamma: weight of E[(ln r)^2] on both sides
    hold_regularisation: bool = False  # use gamma * M/(M+1), which holds gamma * (M+1)/M fixed over M


@dataclass
class TenStep:
    """DxMI (method section 2): a diffusion sampler of few steps, tuned against an energy."""

    schedule: str = ranged("karras", choices=("karras", "var"))
    num_steps: int = ranged(10, 2, 1000)
    rho: float = ranged(7.0, 0.1)  # karras: spacing
    sigma_min: float = ranged(0.002, 1e-6)
    sigma_max: float = ranged(80.0, 1e-3)
    keep_last_noise: bool = False  # T4 variant: one more sigma, so that the last injected noise is not 0
    tau1: float = ranged(0.1, 0)  # entropy weight: -tau1 ln s_t
    tau2: float = ranged(0.01, 0)  # running-cost weight
    skip: int = ranged(3, 0)  # last transitions without tau terms
    velocity_decay: float = ranged(0.99, 0, 1)
    velocity_floor: float = ranged(1e-4, 1e-12)  # v_t starts at sigma_up^2, which is 0 at the last step
    time_cost: float = 0.0  # added to each value target
    time_cost_sigmoid: float = 1.0  # c_sig [sigmoid(T/2-t) - sigmoid(T/2-t-1)]
    energy_weight: float = ranged(1.0, 0)  # 0: the control that tunes without the ratio
    value_conditional: bool = False  # give V the class as well
    value_steps: str = ranged(
        "sequential", choices=("sequential", "joint")
    )  # T Adam steps, or one over all T*B transitions
    value_weight: float = ranged(1.0, 0)  # joint: weight of the temporal-difference loss beside the energy loss
    value_warmup_samples: int = ranged(0, 0)  # V learns alone for so long
    sampler_batches: int = ranged(1, 1)  # minibatches of B transitions per iteration; num_steps takes them all
    sampler_steps: str = ranged("sequential", choices=("sequential", "joint"))  # a step per minibatch, or one
    value_width: int = ranged(128, 8)  # channels of the energy network
    value_patch_size: int = ranged(1, 1)  # pixels folded together before its first layer
    value_weights: str = (
        ""  # safetensors of a V fitted to the untuned sampler; "shipped": the one for the made pictures
    )
    value_contrast: bool = False  # V also sees ln(1 + 10 |x - its 3x3 mean|): the size of fine detail
    value_squash: bool = False  # V sees (2x/(1+|x|), ln(1+|x|)): pure noise reaches it at the first steps
    sampler: Optimiser = part(Optimiser)
    value: Optimiser = part(Optimiser)
    log_sigma_lr_scale: float = ranged(100.0, 0)  # lr of ln s_t over the sampler's
    training: Training = part(Training)


@dataclass
class OneStep:
    """SiD with an adversarial critic on the fake score's encoder (method section 3)."""

    alpha: float = 1.0
    sigma_init: float = ranged(2.5, 1e-3)
    t_max: int = ranged(800, 1, 1000)
    generator_freeze_samples: int = ranged(0, 0)  # only the fake score learns at first
    critic_from_samples: int = ranged(0, 0)  # adversarial terms begin here
    critic: str = ranged("n2ce", choices=("n2ce", "bce", "none"))  # none: SiD without data
    critic_noise_magnitude: float = ranged(50.0, 1, float("inf"))
    magnitude_from_sweep: bool = False  # take the sweep's best M instead
    critic_clip: float = ranged(10.0, 0.1)  # generator term: |logit - ln M| is clipped here
    critic_loss_scale: float = ranged(1.0, 0)  # lsd: of the critic's loss beside the fake score's
    generator_loss_scale: float = ranged(100.0, 0)  # lsg
    adversarial_scale: float = ranged(0.01, 0)  # lsg_gan
    weight_floor: float = ranged(1e-5, 0)  # of w = mean |x_g - f_phi|
    divide_adversarial_by_weight: bool = True
    ema_half_life: float = ranged(500_000, 0)
    fake_score: Optimiser = part(Optimiser)
    generator: Optimiser = part(Optimiser)
    training: Training = part(Training)


@dataclass
class DensityRatio:
    """A network for ln p/q between two sets of vectors, or of a known ratio (ratio/families.py)."""

    vectors: str = ""  # npz with float arrays p (n, d) and q (m, d); empty: draws from the family below
    holdout: float = ranged(0.2, 0.01, 0.9)  # of given vectors: the part that is kept for the evaluation
    family: str = ranged("shift", choices=("shift", "correlation", "scale", "mixture"))
    dim: int = ranged(5, 1)
    kl: float = ranged(8.0, 1e-6, 1e4)  # KL(p || q) in nats
    num_samples: int = ranged(5000, 0)  # a side, drawn once; 0: fresh ones at every step
    test_samples: int = ranged(10_000, 16)  # a side, for the evaluation
    network: str = ranged("linear", choices=("linear", "quadratic", "mlp"))
    width: int = ranged(64, 1)  # mlp
    num_layers: int = ranged(2, 1)  # mlp: hidden layers
    # K: ln p/q as a sum of K log-ratios of neighbours on a way from p to q (ratio/telescoping.py); 1: directly
    # A sample stays a pair, which has two ends at each bridge: 2K vectors are evaluated for it
    num_bridges: int = ranged(1, 1, 64)
    waymarks: str = ranged("combined", choices=("combined", "mixed"))  # weighted sums of a pair, or mixed coordinates
    bridge_power: float = ranged(1.0, 0.1, 20)  # combined: q's weight in waymark k is (k/K)^power
    optimiser: Optimiser = part(Optimiser)
    training: Training = part(Training)


@dataclass
class Evaluation:
    """How samplers are measured."""

    num_samples: int = ranged(2048, 16)  # images per draw
    draws: int = ranged(3, 1)  # independent sets of sampling noise
    reference_samples: int = ranged(50_000, 16)  # training pictures behind the reference statistics, at most
    batch: int = ranged(128, 1)
    features: str = ranged("auto", choices=("auto", "shapes", "inception"))  # auto: inception when weights are given
    inception_weights: str = ""  # pt_inception-2015-12-05 state dict (.pth) or safetensors
    neighbours: int = ranged(3, 1)  # k of precision and recall


@dataclass
class Sweep:
    """The trials: over M, or over any settings of one stage (`sweep.space`)."""

    noise_magnitudes: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0, 1000.0])
    nwj: bool = True  # also M = inf
    # density ratio and a space: each trial with each of these as run.seed; sweep.space.run.seed is in their place:
    seeds: list[int] = ranged_list(0, 2**31 - 1)
    held: bool = True  # also the small M with gamma*(M+1)/M held fixed
    zero_energy: bool = True  # also the control with the energy's weight at 0
    concurrent: int = ranged(0, 0)  # trials at a time; 0: as many as fit
    # Trials that share a process, stacked where their task allows, or in turns. pbt, tpe: of one generation or batch;
    # asha: it judges so many at a time (or `reduction`, if that is more), and those who go on are packed anew:
    per_process: int = ranged(1, 1, 4096)
    # sweep.space.<setting>=grid(1,10), choice(a,b), uniform(0,1), loguniform(1,1e4) or integer(2,10) (sweep/space.py):
    space: dict[str, str] = field(default_factory=dict)  # in place of the magnitudes and controls above
    strategy: str = ranged("grid", choices=("grid", "random", "asha", "pbt", "tpe"))  # sweep/strategies.py
    trials: int = ranged(0, 0)  # draws of what is no grid; pbt: the population
    metric: str = "selection"  # what trials are judged by: the report's selection figure, or one of metrics.jsonl
    mode: str = ranged("min", choices=("min", "max"))  # which value of it is good
    interval: int = ranged(0, 0)  # asha: samples of the first rung, pbt: of a generation; 0: a 16th of the training
    # asha: of the trials at a rung one in so many goes on, to so many times the samples:
    reduction: float = ranged(4.0, 2)
    batch: int = ranged(4, 1)  # tpe: trials suggested at a time
    price_per_hour: float = ranged(0.0, 0)  # of one worker, for the plan
    # budget for the checkpoints of all trials together: each keeps fewer, fewer run at a time, ended ones keep none
    checkpoint_bytes: int = ranged(0, 0)  # 0: no limit


@dataclass
class Metrics:
    """The Prometheus endpoint."""

    port: int = ranged(0, 0, 65535)  # Prometheus endpoint on 127.0.0.1; 0 takes a free one, named at the start
    host: str = "127.0.0.1"


@dataclass
class Config:
    """Every setting of a run."""

    run: Run = part(Run)
    workers: Workers = part(Workers)
    data: Data = part(Data)
    network: Network = part(Network)
    teacher: Teacher = part(Teacher)
    objective: Objective = part(Objective)
    ten_step: TenStep = part(TenStep)
    one_step: OneStep = part(OneStep)
    density_ratio: DensityRatio = part(DensityRatio)
    evaluation: Evaluation = part(Evaluation)
    sweep: Sweep = part(Sweep)
    metrics: Metrics = part(Metrics)
