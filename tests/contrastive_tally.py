"""What ContrastiveStatistics makes of a kernel's tally, and how far that is from the oracle's."""

import math

from tolerances import CPU, allowed_error

import simtile
from simtile._statistics import Tally
from simtile.reference import contrastive_numpy

FOUND = ("positive_similarity", "negative_similarity", "accuracy", "masked")


def means(tally):
    statistics = simtile.ContrastiveStatistics()
    statistics.add(tally)
    return [statistics.as_dict()[name] for name in FOUND]


def tally_errors(case, dtype, tally, truth, arithmetic=CPU):
    """Of every mean its name, its error and what rounding explains; of the accuracy the error is
    what is beyond the ends that rounding may bring it to."""
    expected = contrastive_numpy.statistics(*case.inputs, case.options)
    found = dict(zip(FOUND, means(tally), strict=True))
    scale = max(truth.logit_scale * case["temperature"], 1e-30)
    allowed = allowed_error("info_nce.statistics", dtype, 1.0, arithmetic, case.dimensions)
    for name in FOUND[:2]:
        error = distance(found[name], getattr(expected, name))
        yield name, error / scale, allowed
    yield "masked", distance(found["masked"], expected.masked), 1e-12
    least, most = (
        contrastive_numpy.statistics(
            *case.inputs, case.options, head_start=2.0 * sign * allowed * scale
        ).accuracy
        for sign in (-1.0, 1.0)
    )
    beyond = max(least - found["accuracy"], found["accuracy"] - most)
    yield "accuracy", max(beyond, 0.0), 0.0
    yield "pairs", abs(Tally(*tally).pairs - case.queries), 0.0


def distance(value, exact):
    """Infinite where only one is not a number."""
    if math.isnan(value) or math.isnan(exact):
        return 0.0 if math.isnan(value) and math.isnan(exact) else math.inf
    return abs(value - exact)


def check_tally(case, dtype, tally, truth, arithmetic=CPU):
    for name, error, allowed in tally_errors(case, dtype, tally, truth, arithmetic):
        assert error <= allowed, f"{name} ({dtype}): error {error:.3g}, allowed {allowed:.3g}"
