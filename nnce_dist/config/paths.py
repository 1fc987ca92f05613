"""Paths in a configuration, made absolute once: workers of a cluster have another working directory."""

import os

from .schema import Config

PATHS = {
    "run": ("dir", "mirror"),
    "data": ("train", "val", "cache_dir"),
    "teacher": ("weights",),
    "ten_step": ("value_weights",),
    "density_ratio": ("vectors",),
    "evaluation": ("inception_weights",),
}
_WORDS = ("", "shipped")


def make_absolute(config: Config) -> None:
    """Replaces relative paths by absolute ones, in place; words and addresses like s3:// stay."""
    for part, keys in PATHS.items():
        section = getattr(config, part)
        for key in keys:
            value = getattr(section, key)
            if value not in _WORDS and "://" not in value:
                setattr(section, key, os.path.abspath(os.path.expanduser(value)))
