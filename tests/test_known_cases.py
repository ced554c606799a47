"""Cases whose answers are known from arithmetic, to the digits given."""

import math

import numpy as np
import pytest

import simtile

BACKENDS = ["cpu", "reference"]
DTYPES = ["float32", "float64"]


def losses_of_similarities(rows, temperature, dtype, backend):
    """The losses of a matrix of similarities, the positives on the diagonal."""
    similarities = np.array(rows, dtype)
    # q_i is the i-th unit vector, so q_i · d_j is the i-th entry of d_j.
    queries = np.eye(*similarities.shape[:1], dtype=dtype)
    return simtile.info_nce_grad(
        queries,
        np.ascontiguousarray(similarities.T),
        temperature=temperature,
        normalize=False,
        reduction="none",
        backend=backend,
    )[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_pairs(dtype, backend):
    queries = np.array([[1.0, 0.0], [0.0, 1.0]], dtype)
    positives = np.array([[0.95, 0.05], [0.10, 0.90]], dtype)
    unit = positives / np.linalg.norm(positives, axis=1, keepdims=True)
    assert round(float(queries[0] @ unit[0]), 4) == 0.9986
    assert round(float(queries[0] @ unit[1]), 4) == 0.1104
    loss, *_ = simtile.info_nce_grad(queries, positives, temperature=0.2, backend=backend)
    assert round(float(loss), 4) == 0.0104


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_beyond_the_range_of_exp(dtype, backend):
    # log(1 + e^-14), where e^1000 is infinite
    losses = losses_of_similarities([[1000.0, 986.0], [986.0, 1000.0]], 1.0, dtype, backend)
    assert [f"{x:.8f}" for x in losses] == ["0.00000083"] * 2
    assert losses == pytest.approx(math.log1p(math.exp(-14.0)), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("temperature", "probability", "digits"),
    [(1.0, 0.668188, 6), (0.1, 0.999089, 6), (0.05, 0.99999917, 8), (0.01, 1.0, 6)],
)
def test_the_probability_of_a_good_positive(temperature, probability, digits, dtype, backend):
    losses = losses_of_similarities([[0.90, 0.20], [0.20, 0.90]], temperature, dtype, backend)
    assert round(math.exp(-float(losses[0])), digits) == probability
    if temperature == 0.05:
        assert f"{losses[0]:.1e}" == "8.3e-07"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_of_a_bad_positive(dtype, backend):
    losses = losses_of_similarities([[0.20, 0.90], [0.90, 0.20]], 0.05, dtype, backend)
    assert losses == pytest.approx(14.0, abs=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_candidates_share_the_probability(dtype, backend):
    # 1 of 8 candidates: log 8
    documents = np.ones((8, 3), dtype)
    loss, *grads = simtile.info_nce_grad(documents[:5], documents, backend=backend)
    assert loss == pytest.approx(math.log(8.0))
    assert max(np.abs(g).max() for g in grads) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pressure_on_a_false_negative(dtype, backend):
    # The gradient's share that falls on one of two negatives is its softmax among the negatives:
    # the colder, the more it falls on the nearer one.
    queries = np.array([[1.0, 0.0, 0.0]], dtype)
    similarities = np.array([[0.9, 0.8, 0.3]], dtype)
    documents = similarities.T * np.array([1.0, 0.0, 0.0], dtype)
    for temperature, share in ((1.0, 0.622459), (0.1, 0.993307), (0.05, 0.999955)):
        _, _, grad_documents = simtile.info_nce_grad(
            queries, documents, temperature=temperature, normalize=False, backend=backend
        )
        assert grad_documents[1, 0] / grad_documents[1:, 0].sum() == pytest.approx(share, abs=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_matches_of_two_tokens_add_up(dtype, backend):
    """The first matches with 0.93, the second with 0.91."""
    query = np.eye(2, dtype=dtype)
    document = np.array([[0.93, 0.12], [0.20, 0.55], [0.41, 0.91]], dtype)
    scores, argmax = simtile.maxsim([query], [document], return_argmax=True, backend=backend)
    assert f"{scores[0, 0]:.2f}" == "1.84"
    assert argmax[0].tolist() == [[0, 2]]
    mean = simtile.maxsim([query], [document], length_normalize=True, backend=backend)
    assert f"{mean[0, 0]:.2f}" == "0.92"


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_never_beats_a_negative_similarity(backend):
    document = np.array([[[-0.5, 0.0], [-0.25, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = np.array([[True, True, False, False]])
    query = np.array([[[1.0, 0.0]]])
    assert simtile.maxsim(query, document, None, mask, backend=backend) == -0.25
    assert simtile.maxsim(query, document, zero_rows="pad", backend=backend) == -0.25
    assert simtile.maxsim(query, document, backend=backend) == 0.0
