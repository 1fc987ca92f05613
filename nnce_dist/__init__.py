"""Distributed density-ratio learning with noisier noise-contrastive estimation (N2CE), on Ray."""
