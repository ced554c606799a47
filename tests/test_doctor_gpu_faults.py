"""One wrong number among what a GPU gives fails `simtile doctor`."""

import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from doctor_device import (  # noqa: E402 - they need torch
    BEST,
    BEST_CASE,
    PAIRS,
    POOLED,
    SIGMOID,
    TINY,
    best_by_cpu,
    chosen_by_cpu,
    fake_device,
    info_nce_by_cpu,
    maxsim_by_cpu,
    names,
    reports_of,
    topk_by_numpy,
)

from simtile.doctor import (  # noqa: E402
    gpu,
    info_nce_family,
    maxsim,
    maxsim_topk,
    pairwise,
    pool,
    siglip,
    topk,
)


@pytest.fixture
def fake(monkeypatch):
    return fake_device(monkeypatch)


@pytest.fixture
def report_of(fake, monkeypatch, tmp_path, capsys):
    return reports_of(fake, monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_one_wrong_output_of_maxsim_fails(backend, place, fake, monkeypatch):
    def wrong(*inputs, **options):
        found = list(maxsim_by_cpu(*inputs, **options))
        changed = found[place].detach().clone().view(-1)
        changed[0] = -1 - changed[0]
        found[place] = found[place] + (changed.view(found[place].shape) - found[place].detach())
        return tuple(found)

    case = maxsim.Case(2, 3, 4, 5, 6)
    assert all(c.ok for c in maxsim.values(fake, backend, "bfloat16", case))
    monkeypatch.setattr(maxsim, "simtile", types.SimpleNamespace(maxsim=wrong))
    assert sum(not c.ok for c in maxsim.values(fake, backend, "bfloat16", case)) == 1


@pytest.mark.parametrize("kind", maxsim_topk.KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_one_wrong_document_fails(place, kind, fake, monkeypatch):
    def wrong(*inputs, **options):
        found = best_by_cpu(*inputs, **options)
        if "k" in options:
            found = [x.clone() for x in found]
            found[place][1, 2] += 1
        return found

    assert all(c.ok for c in maxsim_topk.values(fake, kind, BEST_CASE))
    monkeypatch.setattr(
        maxsim_topk, "simtile", types.SimpleNamespace(**{**vars(BEST), "maxsim_packed": wrong})
    )
    differing = [c.error for c in maxsim_topk.values(fake, kind, BEST_CASE)]
    assert differing == [place == 0, place == 1]


@pytest.mark.parametrize("dtype", pairwise.DTYPES)
@pytest.mark.parametrize("loss", pairwise.LOSSES)
@pytest.mark.parametrize("part", ["loss", "gradient", "positive", "negative"])
def test_one_wrong_part_of_a_loss_over_all_pairs_fails(part, loss, dtype, fake, monkeypatch):
    def wrong_loss(name, case, x, labels, backend):
        value, grad = right_loss(name, case, x, labels, backend)
        if backend == "triton" and part == "loss":
            value = value * 1.001
        elif backend == "triton" and part == "gradient":
            grad[np.unravel_index(np.abs(grad).argmax(), grad.shape)] *= 1.05
        return value, grad

    def wrong_choice(device, case, x, labels):
        pairs = chosen_by_cpu(device, case, x, labels)
        if part in ("positive", "negative"):
            side = pairs[part == "negative"]
            same = labels == labels[0]
            allowed = same if part == "positive" else ~same
            allowed[0] = False
            others = np.flatnonzero(allowed.numpy())
            side[0] = others[others != side[0]][0]
        return pairs

    right_loss = pairwise.loss_of
    assert all(c.ok for c in pairwise.values(fake, loss, dtype, PAIRS))
    monkeypatch.setattr(pairwise, "loss_of", wrong_loss)
    monkeypatch.setattr(pairwise, "chosen", wrong_choice)
    failed = {c.output for c in pairwise.values(fake, loss, dtype, PAIRS) if not c.ok}
    if loss == "uniformity" and part in ("positive", "negative"):
        assert not failed
    else:
        assert part in failed


@pytest.mark.parametrize("dtype", siglip.DTYPES)
@pytest.mark.parametrize("name", siglip.OUTPUTS)
def test_one_wrong_part_of_a_sigmoid_loss_fails(name, dtype, fake, monkeypatch):
    def wrong(case, inputs, backend):
        found = right(case, inputs, backend)
        if backend == "triton":
            largest = np.unravel_index(np.abs(found[name]).argmax(), found[name].shape)
            found[name][largest] *= 1.1
        return found

    right = siglip.outputs_of
    assert all(c.ok for c in siglip.values(fake, dtype, SIGMOID))
    monkeypatch.setattr(siglip, "outputs_of", wrong)
    assert [c.output for c in siglip.values(fake, dtype, SIGMOID) if not c.ok] == [name]


@pytest.mark.parametrize("dtype", pool.DTYPES)
@pytest.mark.parametrize("name", pool.OUTPUTS)
def test_one_wrong_number_of_pooling_fails(name, dtype, fake, monkeypatch):
    def wrong(case, inputs, backend):
        found = right(case, inputs, backend)
        if backend == "triton":
            largest = np.unravel_index(np.abs(found[name]).argmax(), found[name].shape)
            found[name][largest] *= 1.1
        return found

    right = pool.outputs_of
    assert all(c.ok for case in POOLED for c in pool.values(fake, dtype, case))
    monkeypatch.setattr(pool, "outputs_of", wrong)
    assert [c.output for c in pool.values(fake, dtype, POOLED[0]) if not c.ok] == [name]


@pytest.mark.parametrize("part", ["losses", "grad_queries", "grad_documents", "grad_negatives"])
@pytest.mark.parametrize("dtype", info_nce_family.DTYPES)
def test_one_wrong_number_of_the_family_fails(part, dtype, fake, monkeypatch):
    def wrong(case, inputs, guide, backend):
        found = right(case, inputs, guide, backend)
        if backend == "triton":
            x = found[part]
            x[np.unravel_index(np.abs(x).argmax(), x.shape)] *= 1.2
        return found

    right = info_nce_family.run
    case = info_nce_family.CASES[0]
    assert all(c.ok for c in info_nce_family.values(fake, dtype, case))
    monkeypatch.setattr(info_nce_family, "run", wrong)
    failed = [c.output for c in info_nce_family.values(fake, dtype, case) if not c.ok]
    assert failed == [part]


@pytest.mark.parametrize("variant", gpu.INFO_NCE, ids=lambda x: f"{x.backend} {x.label}")
def test_one_wrong_loss_fails(variant, report_of, monkeypatch):
    def wrong(queries, documents, **options):
        losses = info_nce_by_cpu(queries, documents, **options)
        chosen = (options["backend"], options.get("precision"), str(queries.dtype)[6:])
        if chosen == (variant.backend, variant.precision, variant.dtype) and losses.dim():
            losses = losses + torch.tensor([0.5] + [0.0] * (len(losses) - 1))
        return losses

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrong))
    status, shown, stored = report_of("--quick")
    assert status == 1
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert names(failed) == {("info_nce", variant.backend, variant.label)}
    assert {check["what"] for check in failed} >= {"values", "beside the CPU's float64 kernel"}
    assert f"FAILED info_nce {variant.backend} {variant.label}" in shown


@pytest.mark.parametrize("variant", gpu.INFO_NCE[:5], ids=lambda x: x.label)
@pytest.mark.parametrize("name", ["queries", "documents", "negatives", "temperature"])
def test_one_wrong_gradient_fails(variant, name, fake, monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad.view(-1)[-1] += grad.abs().max()
            return grad

    def wrong(**options):
        queries, documents = options.pop("queries"), options.pop("documents")
        changed = {"queries": queries, "documents": documents, **options}
        changed[name] = Wrong.apply(changed[name])
        return info_nce_by_cpu(changed.pop("queries"), changed.pop("documents"), **changed)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrong))
    found = {c.output: c.ok for c in gpu._small(fake, variant, TINY[0])}
    failed = {output for output, ok in found.items() if not ok}
    assert failed == {f"none.grad_{name}", f"mean.grad_{name}"}


@pytest.mark.parametrize("kind", topk.KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_one_wrong_id_or_score_fails(kind, place, report_of, monkeypatch):
    def wrong(*arguments):
        result = topk_by_numpy(*arguments)
        if arguments[0] == kind:
            result[place][-1, 0] += 1
        return result

    monkeypatch.setattr(topk.topk, "search", wrong)
    monkeypatch.setattr(gpu, "INFO_NCE", ())
    status, _, stored = report_of()
    assert status == 1
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert {check["dtype"] for check in failed} == {kind}
    whats = {"equal to NumPy's", *(["beyond 2^31 bytes"] if kind in topk.BEYOND else [])}
    assert {check["what"] for check in failed} == whats


def test_results_that_change_between_calls_fail(fake, monkeypatch):
    calls = iter(range(100))

    def restless(queries, documents, **options):
        return info_nce_by_cpu(queries, documents, **options) + next(calls) * 1e-6

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=restless))
    changed = {c.output: c.error for c in gpu._same_bits(fake, gpu.INFO_NCE[0])}
    assert changed["losses, repeats that differ"] == gpu.REPEATS


def test_an_address_that_wraps_around_fails(fake, monkeypatch):
    def wrapping(queries, documents, *, targets, **options):
        return info_nce_by_cpu(queries, documents, targets=targets % 32, **options)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrapping))
    assert not any(c.ok for c in gpu._beyond(fake, gpu.INFO_NCE[3]))


def test_an_output_of_another_type_or_shape_fails(fake, monkeypatch):
    for change in (lambda s, i: (s.long(), i), lambda s, i: (s[:, :-1], i[:, :-1])):
        monkeypatch.setattr(topk.topk, "search", lambda *a: change(*topk_by_numpy(*a)))  # noqa: B023
        with pytest.raises(RuntimeError, match=r"scores: .*, expected int32 \(9, 5\)"):
            list(topk.values(fake, "packed", topk.SMALL[0]))
