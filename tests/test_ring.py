"""The blocks of simtile.distributed's ring against the float64 oracle, in one process."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from info_nce_cases import Case, as_tensor, check_case, compared, run_plain
from tolerances import check_against_plain, check_rounding

from simtile import _ring


class OneRank:
    """The ring as rank 0 of many sees it: the others' blocks come by and their gradients leave."""

    others = ()
    gradients = ()

    def __init__(self, layout):
        self.rank, self.ranks = 0, 1 + len(OneRank.others)

    def blocks(self, block, ids):
        yield block, ids
        yield from OneRank.others

    def start_one(self, sent, owner):
        OneRank.gradients.append(sent)
        return torch.zeros(())  # nobody else has queries

    def finish(self, started):
        return started


def run_ring(case, blocks, monkeypatch):
    """Losses and the gradients of Σ row_weights · losses, the documents in blocks.

    The first block has the documents of all queries.
    """
    q, d, x = (None if v is None else as_tensor(v) for v in case.inputs)
    query_ids, document_ids = (
        None if case[name] is None else torch.from_numpy(case[name])
        for name in ("query_ids", "document_ids")
    )
    n, m, k = case.queries, case.documents, case.negatives or 0
    least = n if case["targets"] is None else case["targets"].max() + 1
    bounds = [0, *np.linspace(least if blocks > 1 else m, m, blocks).astype(int)]
    spans = list(itertools.pairwise(bounds))
    first, *rest = [
        (d[a:b], None if document_ids is None else document_ids[a:b]) for a, b in spans if b > a
    ]
    if case.normalize:
        rest = [(_ring._unit(block), ids) for block, ids in rest]
    OneRank.others, OneRank.gradients = rest, []
    monkeypatch.setattr(_ring, "_Ring", OneRank)
    monkeypatch.setattr(_ring.dist, "get_rank", lambda group: 0)
    documents = first[0].clone().requires_grad_()
    q = q.clone().requires_grad_()
    x = None if x is None else x.clone().requires_grad_()
    temperature = torch.tensor(case.temperature, dtype=torch.float64, requires_grad=True)
    own = len(documents) + (0 if case.own or x is None else n * k)
    layout = _ring.Layout(
        [own, *(len(block) for block, _ in rest)],
        [len(documents), *(len(b) for b, _ in rest)],
        None,
    )
    losses = _ring.ring_losses(
        q,
        documents,
        x,
        None if case["targets"] is None else torch.from_numpy(case["targets"]),
        query_ids,
        first[1],
        layout,
        case.own,
        _ring.Options(temperature, case.normalize, "auto", "ieee", 1),
    )
    weights = (
        torch.ones(n) if case["row_weights"] is None else torch.from_numpy(case["row_weights"])
    )
    losses.backward(weights.to(losses.dtype))
    grads = [documents.grad, *OneRank.gradients]
    if case.normalize:  # through the others' own normalisation
        raw = [d[a:b].clone().requires_grad_() for a, b in spans if b > a][1:]
        for block, grad in zip(raw, grads[1:], strict=True):
            unit = _ring._unit(block)
            unit.backward(grad.to(unit.dtype))
        grads[1:] = [block.grad for block in raw]

    def wide(t):
        return None if t is None else t.detach().double().numpy()

    return (
        wide(losses),
        wide(q.grad),
        wide(torch.cat([g.double() for g in grads])),
        None if x is None else wide(x.grad if x.grad is not None else torch.zeros_like(x)),
        temperature.grad.item(),
    )


SPECIAL = ("zero query", "zero document", "tiny rows", "huge rows", "duplicates")


@st.composite
def ring_cases(draw, dtypes, special):
    n = draw(st.sampled_from([1, 7, 33]))
    targets = draw(st.booleans())
    normalize = draw(st.booleans())
    if not normalize:
        special = [what for what in special if what != "huge rows"]
    return Case(
        queries=n,
        documents=n + draw(st.sampled_from([0, 1, 20, 111])),
        dimensions=draw(st.sampled_from([1, 7, 16, 111])),
        negatives=draw(st.sampled_from([None, 0, 1, 3])),
        dtype=draw(st.sampled_from(dtypes)),
        temperature=draw(st.sampled_from([0.01, 0.05, 0.3, 1.0])),
        normalize=normalize,
        own=draw(st.booleans()),
        targets=targets,
        ids=draw(st.booleans()),
        row_weights=draw(st.booleans()),
        special=tuple(sorted(draw(st.sets(st.sampled_from(special), max_size=2))))
        if special
        else (),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@given(ring_cases(("float32", "float64"), SPECIAL), st.sampled_from([1, 2, 5]))
def test_blocks_give_the_oracle_s_loss_and_gradients(case, blocks):
    with pytest.MonkeyPatch.context() as monkeypatch:
        check_case(case, run_ring(case, blocks, monkeypatch))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("normalize", [False, True])
def test_half_precision_is_no_worse_than_the_plain_formula(dtype, normalize, monkeypatch):
    case = Case(64, 300, 48, 2, dtype, 0.05 if normalize else 0.5, normalize, ids=True)
    plain = dict(zip(NAMES, run_plain(case), strict=True))
    result = run_ring(case, 4, monkeypatch)
    for name, value, expected, scale, _, condition in compared(case, result):
        if not normalize and name in ("info_nce.losses", "info_nce.grad_temperature"):
            # Nothing of these is rounded to 16 bits but the reference, which is accounted for.
            check_rounding(name, value, expected, scale, dtype, condition)
        check_against_plain(
            name, value, plain[name.split(".")[1]], expected, scale, dtype, condition
        )


NAMES = ("losses", "grad_queries", "grad_documents", "grad_negatives", "grad_temperature")


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_small_and_large_losses_keep_their_digits(scale, monkeypatch):
    # Far below the reference, far above it, and a positive that is far below 0.
    case = Case(4, 12, 8, dtype="float64", temperature=0.05 / scale, normalize=True, seed=5)
    q, d = case["queries"], case["documents"]
    d[:4] = q
    d[1] = -q[1]
    d[5] = q[2] * 3
    result = run_ring(case, 3, monkeypatch)
    check_case(case, result)
    assert np.isfinite(np.concatenate([x.ravel() for x in result[:3]])).all()
    assert result[0].min() >= 0


def test_a_nan_stays_in_its_row(monkeypatch):
    case = Case(5, 9, 6, dtype="float32", temperature=0.5, normalize=False)
    clean = run_ring(case, 3, monkeypatch)[0]
    case["queries"][2] = np.nan
    losses = run_ring(case, 3, monkeypatch)[0]
    assert np.isnan(losses[2])
    np.testing.assert_allclose(np.delete(losses, 2), np.delete(clean, 2), rtol=1e-6)


def test_ids_are_numbered_at_the_ends_of_the_range():
    lowest, highest = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    queries = torch.tensor([highest, lowest, 5, 5])
    documents = torch.tensor([5, lowest, highest, 4, highest - 1])
    q, d = _ring.numbered_ids(queries, documents, 2)
    same = q[:, None] == d[None, :]
    assert torch.equal(same[:, :5], queries[:, None] == documents)
    assert not same[:, 5:].any()
