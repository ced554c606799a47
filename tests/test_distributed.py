"""simtile.distributed on 2 and 4 gloo processes: one process's loss and gradients of all rows."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_worker import MODES, Model, encoder, texts
from info_nce_cases import Case, as_tensor, check_case, compared, run_plain
from tolerances import check_against_plain

import simtile
import simtile.distributed

# 4 processes on 2 cores take a while to start.
RANKS = [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.deep)]

CASES = {
    "plain": Case(22, 22, 16, seed=1),
    "all negatives, ids": Case(22, 30, 111, 2, ids=True, row_weights=True, seed=2),
    "own negatives, targets": Case(22, 9, 7, 3, targets=True, own=True, ids=True, seed=3),
    "no negatives of none": Case(22, 22, 5, 0, seed=4),
    "one dimension": Case(22, 25, 1, 1, temperature=1.0, seed=5),
    "dot products": Case(22, 25, 33, 1, temperature=0.3, normalize=False, ids=True, seed=6),
    "special rows": Case(
        22, 26, 12, 1, temperature=0.3, special=("huge rows", "tiny rows", "zero query"), seed=7
    ),
    "float64": Case(22, 26, 12, 2, "float64", 0.01, ids=True, row_weights=True, seed=8),
    "bfloat16": Case(40, 44, 24, 1, "bfloat16", ids=True, seed=9),
    "float16": Case(40, 44, 24, 1, "float16", normalize=False, temperature=0.5, seed=10),
}


def bounds(count, ranks):
    """Uneven: the first rank has half as many rows as the others."""
    share = count / (ranks - 0.5)
    return [0, *(round(share * (0.5 + i)) for i in range(ranks))]


def split(case, ranks):
    """What each rank gets, and the order of all documents when rank 0's come first."""
    n, m = case.queries, case.documents
    rows = bounds(n, ranks)
    if case["targets"] is None:
        # Query i's document, then a share of the documents that are nobody's.
        spare = bounds(m - n, ranks)
        owned = [
            np.r_[rows[r] : rows[r + 1], n + spare[r] : n + spare[r + 1]] for r in range(ranks)
        ]
        targets = [None] * ranks
    else:
        # A rank has copies of its queries' documents, so that all targets are its own.
        owned, targets = [], []
        for r in range(ranks):
            used, where = np.unique(case["targets"][rows[r] : rows[r + 1]], return_inverse=True)
            owned.append(used)
            targets.append(where)
    parts = {"vectors": [], "integers": [], "row_weights": []}
    weights = np.ones(n) if case["row_weights"] is None else case["row_weights"]
    for r in range(ranks):
        own = slice(rows[r], rows[r + 1])
        parts["vectors"].append(
            [
                as_tensor(case["queries"][own]),
                as_tensor(case["documents"][owned[r]]),
                None if case["negatives"] is None else as_tensor(case["negatives"][own]),
            ]
        )
        integers = {"targets": targets[r]}
        if case.ids:
            integers["query_ids"] = case["query_ids"][own]
            integers["document_ids"] = case["document_ids"][owned[r]]
        parts["integers"].append(
            {k: torch.from_numpy(v) for k, v in integers.items() if v is not None}
        )
        parts["row_weights"].append(torch.from_numpy(weights[own].copy()))
    options = {
        "normalize": case.normalize,
        "negatives_scope": "own" if case.own else "all",
    }
    return {**parts, "options": options, "temperature": case.temperature}, owned, targets


def whole(case, ranks):
    """The case of one process: the documents of all ranks in their order, with targets."""
    _, owned, targets = split(case, ranks)
    order = np.concatenate(owned)
    rows, starts = bounds(case.queries, ranks), np.cumsum([0, *map(len, owned)])
    joined = Case(
        case.queries, len(order), case.dimensions, case.negatives, case.dtype, case.temperature,
        case.normalize, case.own, True, case.ids, case.row_weights,
    )  # fmt: skip
    for name in ("queries", "negatives", "query_ids", "row_weights"):
        joined.arrays[name] = case[name]
    for name in ("documents", "document_ids"):
        joined.arrays[name] = None if case[name] is None else case[name][order]
    joined.arrays["targets"] = np.concatenate(
        [
            start + (np.arange(rows[r + 1] - rows[r]) if targets[r] is None else targets[r])
            for r, start in enumerate(starts[:-1])
        ]
    )
    return joined


@pytest.fixture(scope="module", params=RANKS)
def ranks(request):
    return request.param


@pytest.fixture(scope="module")
def results(ranks, tmp_path_factory):
    """What every rank found."""
    directory = tmp_path_factory.mktemp(f"ranks{ranks}")
    cases = {name: split(case, ranks)[0] for name, case in CASES.items()}
    torch.save(cases, directory / "cases.pt")
    worker = Path(__file__).with_name("distributed_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(ranks), str(directory)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
    return [torch.load(directory / f"rank{r}.pt", weights_only=False) for r in range(ranks)]


def joined(results, key):
    """Losses, and gradients of queries, documents, negatives and temperature, of all ranks."""
    parts = list(zip(*(result[key] for result in results), strict=True))

    def wide(xs):
        return None if xs[0] is None else torch.cat([x.double() for x in xs]).numpy()

    return (*map(wide, parts[:4]), sum(parts[4]).item())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.dtype in ("float32", "float64")])
def test_equals_the_oracle_of_all_rows(results, ranks, name, mode):
    check_case(whole(CASES[name], ranks), joined(results, (name, mode)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_is_no_worse_than_the_plain_formula(results, ranks, name, mode):
    case = whole(CASES[name], ranks)
    names = ("losses", "grad_queries", "grad_documents", "grad_negatives", "grad_temperature")
    plain = dict(zip(names, run_plain(case), strict=True))
    for output, value, expected, scale, dtype, condition in compared(
        case, joined(results, (name, mode))
    ):
        formula = plain[output.split(".")[1]]
        check_against_plain(output, value, formula, expected, scale, dtype, condition)


@pytest.mark.parametrize("mode", MODES)
def test_every_rank_returns_the_loss_of_the_whole_batch(results, ranks, mode):
    x, y, _ = (v[2:] for v in texts(ranks))  # rank 0 has two rows fewer
    for reduction in ("mean", "sum"):
        q, d = x.clone().requires_grad_(), y.clone().requires_grad_()
        loss = simtile.info_nce(q, d, reduction=reduction)
        loss.backward()
        for gradients in ("averaged", "summed"):
            found = [result["reductions", mode][reduction, gradients] for result in results]
            for value, _, _, again in found:
                torch.testing.assert_close(value, loss.detach())
                torch.testing.assert_close(again, loss.detach())
            ours = [torch.cat([part[i] for part in found]) for i in (1, 2)]
            if gradients == "averaged":  # by who averages parameters' gradients afterwards
                ours = [grad / ranks for grad in ours]
            torch.testing.assert_close(ours, [q.grad, d.grad], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_parameters_under_distributed_data_parallel(results, ranks, mode):
    model = Model(mode)
    q, d, x = (model.encoder(v) for v in texts(ranks))
    loss = simtile.info_nce(
        q,
        d,
        x.reshape(len(q), 2, -1),
        temperature=model.log_temperature.exp(),
        query_ids=torch.arange(ranks * 6) % 5,
    )
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for result in results:
        value, grads = result["model", mode]
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_cached_loss_inside_and_around_distributed_data_parallel(results, ranks, mode, outside):
    model = encoder()
    q, d, x = map(model, texts(ranks))
    loss = simtile.info_nce(q, d, x.reshape(len(q), 2, -1))
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    for result in results:
        value, grads = result["cached", mode, outside]
        torch.testing.assert_close(value, loss.detach())
        torch.testing.assert_close(grads, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_casts_the_embeddings(results, ranks, mode):
    x, y = (v.requires_grad_() for v in texts(ranks)[:2])
    exact = simtile.info_nce(x, y, temperature=0.3).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = simtile.info_nce(x, y, temperature=0.3)
    loss.backward()
    for result in results:
        value = result["autocast", mode][0]
        assert value.dtype == torch.float32
        assert value.item() != exact  # bfloat16 was used
        torch.testing.assert_close(value, loss.detach(), rtol=1e-2, atol=1e-2)
    for i, expected in ((1, x.grad), (2, y.grad)):
        ours = torch.cat([result["autocast", mode][i] for result in results]) / ranks
        assert ours.dtype == torch.float32
        torch.testing.assert_close(
            ours, expected, rtol=0.05, atol=0.02 * expected.abs().max().item()
        )


def test_a_group_of_some_ranks(results):
    x, y, _ = texts(2)
    for result in results[:2]:
        for loss in result["group"]:
            torch.testing.assert_close(loss, simtile.info_nce(x, y))


def test_the_ring_never_holds_all_candidates(results, ranks):
    everything = ranks * 64 * 96 * 4
    for result in results:
        assert result["memory", "all_gather"] >= everything
        # A block with the reference's row and column; 2 ranks' blocks are all there is.
        block = 65 * 97 * 4
        assert result["memory", "ring"] <= 2 * block  # of which float64 products are the larger


def test_errors_are_raised_on_every_rank(results, ranks):
    own = {"shape": "documents: found shape [3, 3]", "empty": "queries: found shape [0, 4]"}
    for rank, result in enumerate(results):
        raised, works_afterwards = result["errors"]
        assert works_afterwards
        for name, message in own.items():
            if rank == ranks - 1:
                assert message in raised[name]
            else:
                assert f"rank {ranks - 1} has refused its inputs" in raised[name]
        for name, message in {
            "dimensions": "dimensions: found [4",
            "dtype": "element type: found ['torch.float32'",
            "negatives": "negatives given: found [0",
            "gradients": "gradients of documents: found [0",
            "ids": "ids given: found [0",
            "mode": "mode: found [0",
        }.items():
            assert message in raised[name]


def test_without_a_process_group():
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="not initialised"):
        simtile.distributed.info_nce(x, x)
