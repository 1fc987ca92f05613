"""Errors as one line for people."""


def one_line(error: BaseException) -> str:
    """The first line of an exception's message that says something, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_bad_input(error: BaseException) -> bool:
    """Whether an error is one that the project raises for what a person can put right."""
    return type(error) in (ValueError, FileNotFoundError)


def describe(error: BaseException) -> str:
    """One line for an error: the message of our own ones and of a refused input, the type as well for anything else."""
    ours = is_bad_input(error) or type(error).__module__.startswith(f"{__name__.partition('.')[0]}.")
    return one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"
