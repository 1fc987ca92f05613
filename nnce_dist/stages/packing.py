"""Which trials of a sweep share a process, and their results when they do (`packs.py` is what runs there)."""

from fnmatch import fnmatch

from ..config.load import differences
from ..sweep.cohorts import evenly
from .folder import PACKS, read_result
from .launch import Launcher, payload_folder

FREE = (  # settings that trials of a pack may differ in: numbers, and for the ten-step sampler, which takes turns, more
    *("run.seed", "objective.noise_magnitude", "objective.schedule.*", "objective.*_regularisation", "ten_step.*"),
    *("*.optimiser.lr", "*.optimiser.warmup_samples", "*.optimiser.decay_fraction", "*.optimiser.clip_*"),
)


def run_packed(jobs: Launcher, payloads: list[dict], size: int) -> list[dict]:
    """The results of all trials in order; at most `size` of them share a process."""
    if size == 1:
        return jobs.run(payloads)
    results = {payload["name"]: read_result(payload_folder(payload)) for payload in payloads}
    unfinished = [pack for pack in packs(payloads, size) if not all(results[one["name"]] for one in pack["trials"])]
    outcomes = jobs.run(unfinished) if unfinished else []
    for pack, outcome in zip(unfinished, outcomes, strict=True):
        results |= {result["name"]: result for result in each_result(pack, outcome)}
    return [results[payload["name"]] for payload in payloads]


def packs(payloads: list[dict], size: int) -> list[dict]:
    """Payloads of packs, as even as they divide; the same for the same sweep, whatever the cluster has."""
    groups: list[list[dict]] = []
    for payload in payloads:
        group = next((group for group in groups if may_share(group[0], payload)), None)
        group.append(payload) if group else groups.append([payload])
    parts = [part for group in groups for part in evenly(group, size)]
    return [pack_of(part, f"{part[0]['stage']}-{number}-of-{len(parts)}") for number, part in enumerate(parts, 1)]


def pack_of(payloads: list[dict], name: str) -> dict:
    """The payload of a pack with a name of its own."""
    return {**payloads[0], "stage": PACKS, "name": name, "trials": payloads}


def may_share(first: dict, second: dict) -> bool:
    """Whether two trials, given as payloads, differ in nothing but what a pack allows."""
    different = (key for key, *_ in differences(first["config"], second["config"]))
    return first["stage"] == second["stage"] and all(any(fnmatch(key, free) for free in FREE) for key in different)


def each_result(pack: dict, outcome: list[dict] | dict) -> list[dict]:
    """The trials' results; where the pack's process was lost, its error is that of every trial without a result."""
    if isinstance(outcome, list):
        return outcome
    lost = ({"name": one["name"], "stage": one["stage"], "error": outcome["error"]} for one in pack["trials"])
    return [read_result(payload_folder(one)) or error for one, error in zip(pack["trials"], lost, strict=True)]
