"""Inputs of info_nce for tests: drawn by hypothesis as shapes, layouts, options and a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from tolerances import CPU, allowed_error, check_rounding, largest_error

from simtile import _core
from simtile._contrast import SCOPES, Contrast
from simtile.reference import contrastive
from simtile.reference import info_nce as lists
from simtile.reference import info_nce_numpy as oracle
from simtile.reference.contrastive_options import Options

NUMPY = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = tuple(NUMPY)
SPECIAL = ("zero query", "zero document", "tiny rows", "huge rows", "duplicates")
LAYOUTS = ("contiguous", "padded rows", "every other row")


@dataclass(frozen=True)
class Case:
    """One call. Data comes from the seed, so that a failure shrinks to small shapes."""

    queries: int  # N
    documents: int  # M
    dimensions: int  # D
    negatives: int | None = None  # K
    dtype: str = "float32"
    temperature: float = 0.05
    normalize: bool = True
    own: bool = False
    targets: bool = False
    ids: bool = False
    row_weights: bool = False
    layout: str = "contiguous"
    special: tuple[str, ...] = ()
    seed: int = 0
    arrays: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        n, m, d, k = self.queries, self.documents, self.dimensions, self.negatives
        # Lengths around 1 without normalisation too, so that logits stay in range.
        shapes = {"queries": (n, d), "documents": (m, d)}
        if k is not None:
            shapes["negatives"] = (n, k, d)
        values = {name: rng.normal(size=shape) / np.sqrt(d) for name, shape in shapes.items()}
        # Drawn always, so that an option that is left out changes nothing else.
        drawn = {
            "targets": rng.integers(m, size=n),
            "query_ids": rng.integers(-3, 3, size=n),
            "document_ids": rng.integers(-3, 3, size=m),
            "row_weights": rng.normal(size=n),
        }
        wanted = (self.targets, self.ids, self.ids, self.row_weights)
        for (name, value), given in zip(drawn.items(), wanted, strict=True):
            self.arrays[name] = value if given else None
        # Positives near their queries, as in training.
        target = np.arange(n) if self.arrays["targets"] is None else self.arrays["targets"]
        values["documents"][target] += values["queries"]
        spare = rng.integers(m, size=m // 2)
        for what in SPECIAL:
            row = int(rng.integers(n))
            if what not in self.special:
                continue
            if what == "zero query":
                values["queries"][row] = 0.0
            elif what == "zero document":
                values["documents"][row % m] = 0.0
            elif what == "duplicates":
                values["documents"][spare] = values["documents"][row % m]
            else:
                scale = {"tiny rows": 1e-30, "huge rows": 1e30}[what]
                values["queries"][row] *= scale
                values["documents"][row % m] *= scale
                if k is not None:
                    values["negatives"][row] *= scale
        for name, value in values.items():
            self.arrays[name] = lay_out(value.astype(NUMPY[self.dtype]), self.layout)

    def __getitem__(self, name):
        return self.arrays.get(name)

    @property
    def options(self):
        """Keyword arguments that the reference and the public functions share."""
        return {
            "temperature": self.temperature,
            "normalize": self.normalize,
            "targets": self["targets"],
            "negatives_scope": "own" if self.own else "all",
            "query_ids": self["query_ids"],
            "document_ids": self["document_ids"],
        }

    @property
    def inputs(self):
        return [self["queries"], self["documents"], self["negatives"]]


def lay_out(x, layout):
    """The same values with other strides, NaN in between."""
    if layout == "contiguous":
        return x
    if layout == "padded rows":
        wide = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, x.dtype)
        wide[..., :-3] = x
        return wide[..., :-3]
    sparse = np.full((2 * x.shape[0], *x.shape[1:]), np.nan, x.dtype)
    sparse[::2] = x
    return sparse[::2]


@st.composite
def cases(
    draw,
    sizes,
    dimensions,
    dtypes=DTYPES,
    negatives=(None, 0, 1, 3),
    temperatures=(0.01, 0.05, 0.3, 1.0, 2.0),
    special=SPECIAL,
):
    """Any combination of sizes, options, layouts and special rows."""
    n = draw(sizes)
    targets = draw(st.booleans())
    m = draw(sizes) if targets else n + draw(st.sampled_from([0, 1, 5]))
    dtype = draw(st.sampled_from(dtypes))
    normalize = draw(st.booleans())
    if not normalize or dtype == "float16":  # in which 1e30, or its square, is infinite
        special = [what for what in special if what != "huge rows"]
    return Case(
        queries=n,
        documents=m,
        dimensions=draw(dimensions),
        negatives=draw(st.sampled_from(negatives)),
        dtype=dtype,
        temperature=draw(st.sampled_from(temperatures)),
        normalize=normalize,
        own=draw(st.booleans()),
        targets=targets,
        ids=draw(st.booleans()),
        row_weights=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        special=tuple(sorted(draw(st.sets(st.sampled_from(special), max_size=2))))
        if special
        else (),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def wide(x):
    """An array in float64, nested lists in the end: what the references read."""
    return None if x is None else x.astype(np.float64)


def as_tensor(x, device="cpu"):
    """A tensor of torch; on the CPU on the memory of the array, with its strides."""
    import torch

    if x is None:
        return None
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(x).to(device)


def run_oracle(case):
    return oracle.info_nce_grad(
        *map(wide, case.inputs), row_weights=case["row_weights"], **case.options
    )


def run_lists(case, reference=lists):
    """By the definition of one direction, or that of the whole family."""

    def as_lists(x):
        return None if x is None else wide(x).tolist()

    options = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in case.options.items()}
    weights = None if case["row_weights"] is None else case["row_weights"].tolist()
    given = {"options": Options(**options)} if reference is contrastive else options
    result = reference.info_nce_grad(*map(as_lists, case.inputs), row_weights=weights, **given)
    if case.negatives != 0:
        return result
    return result._replace(negatives=np.zeros(case["negatives"].shape))


def run_kernel(case, *, threads=1, need=(True, True, True)):
    """The kernel as it is, on outputs full of NaN: it must write all of them."""
    number = np.float64 if case.dtype == "float64" else np.float32
    queries, documents, negatives = (
        x if x is None or case.dtype != "bfloat16" else x.view(np.uint16) for x in case.inputs
    )
    negatives = np.ascontiguousarray(negatives) if case.negatives else None
    inputs = (queries, documents, negatives)
    grads = [
        np.full(x.shape, np.nan, number) if x is not None and wanted else None
        for x, wanted in zip(inputs, need, strict=True)
    ]
    losses = np.full(case.queries, np.nan)
    grad_temperature = _core.info_nce(
        *inputs,
        case.dtype,
        case.temperature,
        case.normalize,
        case["targets"],
        case["query_ids"],
        case["document_ids"],
        *Contrast(scope=SCOPES["own" if case.own else "all"]),
        *(None, None, None),
        1.0,
        case["row_weights"],
        losses,
        *grads,
        threads,
    )
    if case.negatives == 0 and need[2]:
        grads[2] = np.zeros(case["negatives"].shape, number)
    return losses, *grads, grad_temperature


def run_plain(case):
    """The plain formula in the element type of the case, by PyTorch."""
    import torch

    dtype = getattr(torch, case.dtype)
    q, d, x = (
        None if a is None else torch.tensor(wide(a)).to(dtype).requires_grad_() for a in case.inputs
    )
    n, m = case.queries, case.documents
    k = case.negatives or 0
    temperature = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    candidates = d if x is None else torch.cat([d, x.reshape(n * k, case.dimensions)])
    unit = torch.nn.functional.normalize if case.normalize else (lambda v: v)
    logits = unit(q) @ unit(candidates).T / temperature
    target = np.arange(n) if case["targets"] is None else case["targets"]
    masked = np.zeros((n, m + n * k), bool)
    if case.ids:
        masked[:, :m] = case["query_ids"][:, None] == case["document_ids"]
        masked[np.arange(n), target] = False
    if case.own:
        masked[:, m:] = ~np.repeat(np.eye(n, dtype=bool), k, axis=1)
    logits = logits.masked_fill(torch.tensor(masked), -torch.inf)
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="none")
    weights = torch.ones(n) if case["row_weights"] is None else torch.tensor(case["row_weights"])
    (losses * weights.to(dtype)).sum().backward()
    grads = (None if t is None else t.grad.double().numpy() for t in (q, d, x))
    return losses.detach().double().numpy(), *grads, temperature.grad.item()


def largest_terms(case):
    """What a gradient's row would be if one candidate had all of the probability."""
    norms = [None if x is None else np.linalg.norm(wide(x), axis=-1) for x in case.inputs]
    weight = 1.0 if case["row_weights"] is None else np.abs(case["row_weights"]).max()
    if case.normalize:
        scales = [None if x is None else 1.0 / np.maximum(x, 1e-12) for x in norms]
    else:
        q, *candidates = (None if x is None else x.max(initial=0.0) for x in norms)
        other = max(x for x in candidates if x is not None)
        scales = [
            None if x is None else np.full(x.shape, length)
            for x, length in zip(norms, (other, q, q), strict=True)
        ]
    return [None if x is None else x * weight / case.temperature for x in scales]


def compared(case, result, expected=None, arithmetic=CPU):
    """What tolerances.py takes, for each output that is not None."""
    truth = run_oracle(case)
    smallest = arithmetic.smallest.get(case.dtype, 0.0)
    expected = truth if expected is None else expected
    rows = (
        ("losses", expected.losses, np.ones(case.queries)),
        ("grad_queries", expected.queries, truth.query_scale),
        ("grad_documents", expected.documents, truth.document_scale),
        ("grad_negatives", expected.negatives, truth.negative_scale),
        ("grad_temperature", expected.temperature, truth.temperature_scale),
    )
    # A logit is rounded by a share of its terms; and equal candidates are all rounded alike, so
    # that in a sum of n the roundings add up.
    terms = max(case.queries, case.documents + (case.negatives or 0) * case.queries)
    condition = (1.0 + truth.logit_scale) * (1.0 + terms / 200)
    largest = [0.0, *largest_terms(case), 0.0]
    for ours, (name, value, scale), most in zip(result, rows, largest, strict=True):
        if ours is not None:
            if smallest:
                scale = np.maximum(scale, smallest * most)
            yield f"info_nce.{name}", ours, value, scale, case.dtype, condition


def check_case(case, result, expected=None, arithmetic=CPU):
    """Compare losses and gradients with a reference, the oracle when not given."""
    for comparison in compared(case, result, expected, arithmetic):
        check_rounding(*comparison, arithmetic, case.dimensions)


def errors(case, result, arithmetic=CPU):
    """The largest error of every output, relative to its scale, and what rounding explains."""
    for name, value, expected, scale, dtype, condition in compared(
        case, result, arithmetic=arithmetic
    ):
        yield (
            largest_error(value, expected, scale, dtype),
            allowed_error(name, dtype, condition, arithmetic, case.dimensions),
        )
