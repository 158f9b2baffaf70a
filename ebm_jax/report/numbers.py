"""Numbers of an evaluation as text, with their standard errors."""

import math

BETWEEN = " / "  # between row and column in the name of a value of an evaluation
Number = int | float
DIGITS = 4  # significant ones of a number without a standard error


def shown(number: Number, error: Number | None = None) -> tuple[str, str]:
    """A number and its standard error as text; both end at the error's second significant digit."""
    if isinstance(number, int) and error is None:
        return f"{number:,}", ""
    if error is None or not math.isfinite(error) or not math.isfinite(number):
        return f"{number:.{DIGITS}g}", "" if error is None else f"{error:.2g}"
    if error == 0:
        return f"{number:.{DIGITS}g}", "0"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{number:.{places}f}", f"{error:.{places}f}"


def with_error(number: Number, error: Number | None = None) -> str:
    """The same as one text."""
    return " ± ".join(filter(None, shown(number, error)))
