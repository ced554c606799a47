"""simtile.info_nce and info_nce_grad with the options of the whole family."""

import numpy as np
import pytest
import torch
from contrastive_cases import LEVELS, Case, pairwise
from contrastive_kernel import CLOSE, check_case, rounded, run_oracle
from torch._subclasses.fake_tensor import FakeTensorMode

import simtile
import simtile.ops.info_nce
from simtile._contrast import Contrast

TUPLES = pairwise({**LEVELS, "matryoshka": (None,), "bias": (0.0,)})


def clear_case(drawn, dtype):
    """A case without a similarity next to its threshold."""
    for seed in range(20):
        case = rounded(Case(9, 12, 5, drawn, (), seed), dtype)
        if run_oracle(case).closest_call > CLOSE[dtype]:
            return case
    raise AssertionError("every seed has a similarity next to its threshold")


def options_of(case):
    """The keyword arguments of the public functions, with arrays."""
    options = case.options._asdict()
    del options["bias"], options["matryoshka_dims"], options["matryoshka_weights"]
    given = {name: case[name] for name in ("targets", "query_ids", "document_ids")}
    return {**options, **given, "guide": case.guide}


def tensor(x, dtype):
    return None if x is None else torch.tensor(x, dtype=getattr(torch, dtype))


@pytest.mark.parametrize("drawn", TUPLES, ids=range(len(TUPLES)))
def test_losses_and_gradients(drawn):
    case = clear_case(drawn, "float32")
    options = options_of(case)
    if options["guide"] is not None:
        options["guide"] = tuple(tensor(x, "float32") for x in options["guide"])
    for name in ("targets", "query_ids", "document_ids"):
        options[name] = None if options[name] is None else torch.tensor(options[name])
    temperature = torch.tensor(options.pop("temperature"), requires_grad=True)
    inputs = [tensor(x, "float32") for x in case.inputs]
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    losses = simtile.info_nce(*inputs, temperature=temperature, reduction="none", **options)
    weights = np.ones(9) if case["row_weights"] is None else case["row_weights"]
    (losses.double() * torch.tensor(weights)).sum().backward()
    grads = [None if x is None else x.grad.numpy() for x in inputs]
    check_case(case, "float32", (losses.detach().numpy(), *grads, temperature.grad.item()))


@pytest.mark.parametrize("drawn", TUPLES[::5], ids=range(len(TUPLES[::5])))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_arrays(drawn, backend):
    case = clear_case({**drawn, "row_weights": False}, "float64")
    inputs = [x for x in case.inputs if x is not None]
    options = options_of(case)
    losses, *grads = simtile.info_nce_grad(*inputs, **options, reduction="none", backend=backend)
    check_case(case, "float64", (losses, *grads, *[None] * (4 - len(grads))))
    mean, *_ = simtile.info_nce_grad(*inputs, **options, backend=backend)
    np.testing.assert_allclose(mean, losses.mean(), rtol=1e-12)


def test_opcheck_with_a_guide():
    q, d, x = torch.randn(4, 5), torch.randn(6, 5), torch.randn(4, 2, 5)
    inputs = [t.requires_grad_() for t in (q, d, x, torch.tensor(0.1, dtype=torch.float64))]
    guide = [torch.randn(4, 3), torch.randn(6, 3), torch.randn(4, 2, 3)]
    contrast = Contrast(
        directions=11,
        harden_others=1.0,
        margin=0.5,
        guide_margin=0.1,
        widths=(2, 5),
        shares=(0.25, 0.75),
    ).numbers()
    for reduction in ("mean", "none"):
        options = (True, contrast, torch.float32, [True] * 4, "cpu", "ieee", 1, reduction, True)
        arguments = (*inputs, None, None, None, *guide, *options)
        torch.library.opcheck(torch.ops.simtile.info_nce.default, arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"directions": ("doc_to_query",)},
        {"hardness": "all_negatives", "hardness_strength": 1.0},
        {"false_negative_margin": 0.1},
        {"guide": (3, 5)},
        {"directions": ("query_to_doc", "doc_to_doc"), "negatives_scope": "queries"},
        {"statistics": simtile.ContrastiveStatistics()},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_cuda_kernel_says_what_it_does_not_have(options):
    with FakeTensorMode():
        q, d = torch.empty(4, 8, device="cuda"), torch.empty(5, 8, device="cuda")
        if "guide" in options:
            options = {
                "guide": (torch.empty(4, 3, device="cuda"), torch.empty(5, 3, device="cuda"))
            }
        with pytest.raises(ValueError, match="backend: found 'cuda' with options that its kernel"):
            simtile.info_nce(q, d, backend="cuda", **options)
