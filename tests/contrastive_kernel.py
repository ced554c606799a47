"""The CPU kernel of info_nce on a Case of contrastive_cases, and what it should give."""

import ml_dtypes
import numpy as np
from contrastive_cases import Case
from tolerances import CPU, check_rounding

from simtile import _core
from simtile._contrast import check_contrast
from simtile.reference import contrastive_numpy

NUMPY = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
# A threshold closer than this to a similarity may fall on either side.
CLOSE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}


def contrast_of(case):
    options = case.options
    return check_contrast(
        options.directions,
        options.partition,
        options.negatives_scope,
        options.targets is not None,
        options.hardness,
        options.hardness_strength,
        options.false_negative_margin,
        options.guide,
        options.guide_margin,
        options.guide_margin_strategy,
        options.matryoshka_dims,
        options.matryoshka_weights,
    )


def rounded(case, dtype):
    """The case with its vectors rounded to an element type, in float64."""
    for name, x in case.arrays.items():
        if x is not None and (name in ("queries", "documents", "negatives") or "guide" in name):
            case.arrays[name] = x.astype(NUMPY[dtype]).astype(np.float64)
    return case


def clear_case(drawn, dtype, queries=19, special=(), dimensions=12, guide_dimensions=5, close=None):
    """A case without a similarity next to its threshold, and what it should give."""
    close = CLOSE[dtype] if close is None else close
    for seed in range(20):
        case = Case(queries, dimensions, guide_dimensions, drawn, special, seed)
        truth = run_oracle(rounded(case, dtype))
        if truth.closest_call > close:
            return case, truth
    raise AssertionError("every seed has a similarity next to its threshold")


def run_kernel(case, dtype, need=(True, True, True), threads=1, tally=None):
    """Losses and gradients, on outputs full of NaN: the kernel must write all of them."""

    def stored(x):
        if x is None:
            return None
        x = np.ascontiguousarray(x.astype(NUMPY[dtype]))
        return x.view(np.uint16) if dtype == "bfloat16" else x

    number = np.float64 if dtype == "float64" else np.float32
    inputs = [stored(x) for x in case.inputs]
    if inputs[2] is not None and inputs[2].shape[1] == 0:
        inputs[2] = None
    guide = [stored(x) for x in case.guide or ()]
    guide = (guide + [None] * 3)[:3]
    if inputs[2] is None:
        guide[2] = None
    grads = [
        np.full(x.shape, np.nan, number) if x is not None and wanted else None
        for x, wanted in zip(inputs, need, strict=True)
    ]
    losses = np.full(case.queries, np.nan)
    grad_temperature = _core.info_nce(
        *inputs,
        dtype,
        case["temperature"],
        case["normalize"],
        case["targets"],
        case["query_ids"],
        case["document_ids"],
        *contrast_of(case),
        *guide,
        1.0,
        case["row_weights"],
        losses,
        *grads,
        threads,
        tally,
    )
    return losses, *grads, grad_temperature


def run_oracle(case):
    return contrastive_numpy.info_nce_grad(*case.inputs, case.options, case["row_weights"])


def compared(case, dtype, result, truth, arithmetic=CPU):
    """What tolerances.py takes, for each output that is not None."""
    options = case.options
    rows = (
        ("losses", truth.losses, np.ones(case.queries)),
        ("grad_queries", truth.queries, truth.query_scale),
        ("grad_documents", truth.documents, truth.document_scale),
        ("grad_negatives", truth.negatives, truth.negative_scale),
        ("grad_temperature", truth.temperature, truth.temperature_scale),
    )
    # Equal candidates are all rounded alike, so that in a sum of n the roundings add up; a constant
    # that hardness adds is a share of the logit.
    k = case["negatives_per_query"] or 0
    terms = len(options.directions) * (case.queries * (1 + k) + case["bank"])
    hardened = 1.0 + options.hardness_strength * options.temperature
    condition = (1.0 + truth.logit_scale * hardened) * (1.0 + terms / 200)
    smallest = arithmetic.smallest.get(dtype, 0.0)
    largest = largest_terms(case) if smallest else {}
    for ours, (name, value, scale) in zip(result, rows, strict=True):
        if ours is not None:
            scale = np.maximum(scale, smallest * largest.get(name, 0.0))
            yield f"info_nce.{name}", ours, value, scale, dtype, condition


def check_case(case, dtype, result, truth=None, arithmetic=CPU):
    truth = run_oracle(case) if truth is None else truth
    for comparison in compared(case, dtype, result, truth, arithmetic):
        check_rounding(*comparison, arithmetic)


def largest_terms(case):
    """Of each row of a gradient: the term if one candidate had all of the probability."""
    names = ("queries", "documents", "negatives")
    norms = {f"grad_{n}": np.linalg.norm(case[n], axis=-1) for n in names if case[n] is not None}
    weight = 1.0 if case["row_weights"] is None else np.abs(case["row_weights"]).max()
    weight /= case["temperature"]
    if case["normalize"]:
        return {name: weight / np.maximum(x, 1e-12) for name, x in norms.items()}
    most = max(x.max(initial=0.0) for x in norms.values())
    return {name: np.full(x.shape, weight * most) for name, x in norms.items()}


def ties_across_roles(dtype):
    """Whether a product is the same whichever vector is the row, as where thresholds are tied."""
    return not _core.info_nce_arithmetic(dtype).endswith("x3")
