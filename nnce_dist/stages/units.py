"""Numbers of a plan for people."""

import math

TIMES = ((3600, "seconds"), (60, "minutes"), (1, "hours"))  # in an hour
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def device_time(hours: float) -> str:
    """Device-hours, or smaller parts of them."""
    unit, name = next(((unit, name) for unit, name in TIMES if hours * unit < 120), TIMES[-1])
    return f"{hours * unit:,.1f} device-{name}"


def money(amount: float) -> str:
    """In whatever currency the price is."""
    return f"{amount:,.2f}" if amount >= 0.01 else "less than 0.01"


def duration(seconds: float) -> str:
    """Of a step."""
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def in_units(num_bytes: float) -> str:
    """Bytes for people."""
    power = min(int(math.log(max(num_bytes, 1), 1024)), len(UNITS) - 1)
    return f"{num_bytes / 1024**power:,.{1 if power else 0}f} {UNITS[power]}"
