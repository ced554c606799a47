"""The best documents by MaxSim's CUDA kernels: those of all scores, sorted."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host import build
from hypothesis import given
from hypothesis import strategies as st
from maxsim_cases import Case, cases
from maxsim_cuda_host import Call, Device, Host, search
from test_maxsim_cuda_codes import Call as CodesCall

from simtile._maxsim_select import best

ORDERS = st.integers(0, 9)
HOSTS = st.fixed_dictionaries(
    {
        "multiprocessors": st.sampled_from([1, 2, 3]),
        "most_maxima_bytes": st.sampled_from([5000, 64 << 20]),  # documents of a launch
        "most_query_bytes": st.sampled_from([1, 500, 256 << 20]),  # queries of a batch
    }
)
CODES = (("int8", "int16"), ("int8", "int8"), ("uint8", "int16"), ("bits", "int16"))
ALLOW = ("absent", "all", "none", "some", "of each")


@pytest.fixture(scope="module")
def module():
    return build.load("maxsim")


def arguments(call):
    """Of `_cuda.MaxsimArgs`, of floats or codes."""
    seen = []

    class Reader:
        run = seen.append

    call.run(Reader)
    return seen[0]


def draw_allow(rng, kind, queries, documents):
    if kind == "absent":
        return None
    chance = {"all": 1.0, "none": 0.0}.get(kind, 0.6)
    return rng.random((queries, documents) if kind == "of each" else documents) < chance


def draw_candidates(rng, queries, documents, count):
    """With repeats, none, and what is no document."""
    return rng.integers(-2, documents + 2, size=(queries, count))


def check(call, hosts, k, candidates, allow):
    """The search on the first host finds what sorting all scores of the second does."""
    given = arguments(call)
    found = search(hosts[0], given, k, candidates, allow)
    scores = call.run(hosts[1])[0]
    if candidates is not None:
        n = scores.shape[1]
        candidates = np.where((candidates >= 0) & (candidates < n), candidates, -1)
        wide = np.column_stack([scores, np.full(len(scores), np.nan, np.float32)])
        scores = np.take_along_axis(wide, candidates, axis=1)
    expected = best(scores, candidates, allow, k)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


@given(
    case=cases(most=4),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    host=HOSTS,
    k=st.sampled_from([1, 2, 5, 40, 1025]),
    listed=st.sampled_from([None, 0, 1, 5, 33]),
    allow=st.sampled_from(ALLOW),
    seed=st.integers(0, 99),
    order=ORDERS,
)
def test_the_best_are_those_of_all_scores(module, case, dtype, host, k, listed, allow, seed, order):
    rng = np.random.default_rng(seed)
    shape = (len(case["queries"]), len(case["documents"]))
    candidates = None if listed is None else draw_candidates(rng, *shape, listed)
    call = Call(case, dtype)
    hosts = (Host(module, order, **host), Host(module))
    check(call, hosts, k, candidates, draw_allow(rng, allow, *shape))


@pytest.mark.deep  # the kernels of every codec compiled
@given(
    kind=st.sampled_from(
        [("int8", "int16"), ("int8", "int8"), ("uint8", "int16"), ("bits", "int16")]
    ),
    documents=st.lists(st.integers(0, 9), min_size=1, max_size=12).map(tuple),
    host=HOSTS,
    k=st.sampled_from([1, 3, 40, 1025]),
    listed=st.sampled_from([None, 40]),
    allow=st.sampled_from(ALLOW),
    seed=st.integers(0, 99),
    order=ORDERS,
)
def test_the_best_of_codes(module, kind, documents, host, k, listed, allow, seed, order):
    rng = np.random.default_rng(seed)
    call = CodesCall(*kind, (3, 8, 1), documents, 17, seed)
    candidates = None if listed is None else draw_candidates(rng, 3, len(documents), listed)
    hosts = (Host(module, order, **host), Host(module))
    check(call, hosts, k, candidates, draw_allow(rng, allow, 3, len(documents)))


# Documents of one token with few values: many ties. Lists that overflow, several splits, radix
# passes with candidates and without.
MANY = [
    (700, 1, None),
    (700, 33, None),
    (700, 1000, None),
    (700, 1024, None),
    (700, 10, 989),
    (4500, 1025, None),
    (60, 1500, 5000),
]


# One is so long that each is a group, and a launch has no more than 64.
SEVERAL_LAUNCHES = (65, *[1] * 70)


def many(documents, k, listed, order, module, queries=(2, 1), **host):
    call = Call(many_case(documents, k, queries), "float32")
    check_many(call, (Host(module, order, **host), Host(module)), k, listed)


def many_case(documents, k, queries):
    rng = np.random.default_rng(k)
    case = Case(queries, (1,) * documents, 3, "few")
    case.arrays["documents"] = [np.rint(rng.normal(size=(1, 3))) for _ in range(documents)]
    for i in rng.integers(documents, size=20):
        case["documents"][i][0, 1] = rng.choice([np.nan, np.inf, -np.inf])
    return case


def late(order, module):
    """The second best comes last, to the warp that has had the best for long."""
    documents = 4 * 4 * 32 + 1  # four times around a block's warps, and one
    case = Case((1,) * 8, (1,) * documents, 1)
    case.arrays["queries"] = [np.ones((1, 1))] * 8
    scores = [documents, *range(1, documents)]
    case.arrays["documents"] = [np.full((1, 1), float(score)) for score in scores]
    hosts = (Host(module, order, multiprocessors=1), Host(module))
    check(Call(case, "float32"), hosts, 2, None, None)


def check_many(call, hosts, k, listed):
    rng = np.random.default_rng(k)
    given = arguments(call)
    shape = (given["queries_count"], given["documents_count"])
    candidates = None if listed is None else draw_candidates(rng, *shape, listed)
    check(call, hosts, k, candidates, draw_allow(rng, "of each", *shape))


@pytest.mark.parametrize(("documents", "k", "listed"), MANY)
@pytest.mark.parametrize("order", [0, 5])
def test_many_documents(module, documents, k, listed, order):
    many(documents, k, listed, order, module, multiprocessors=3, most_maxima_bytes=40000)


@pytest.mark.parametrize("k", [1, 2, 7])
def test_a_list_that_is_full_again_and_again(module, k):
    """One split of a query: each of its warps goes through 225 documents."""
    many(900, k, None, 0, module, queries=(1,) * 8, multiprocessors=1)


@pytest.mark.parametrize("listed", [None, 5])
@pytest.mark.parametrize("k", [3, 1025])
def test_queries_of_several_launches(module, k, listed):
    many(9, k, listed, 3, module, queries=SEVERAL_LAUNCHES, most_maxima_bytes=50000)


def test_documents_that_get_better_and_better(module):
    """Every document enters a list, which is then full again and again."""
    case = Case((1,), (1,) * 600, 2)
    case.arrays["queries"] = [np.ones((1, 2))]
    case.arrays["documents"] = [np.full((1, 2), float(i)) for i in range(600)]
    call = Call(case, "float32")
    for launch in (1 << 20, 5000):
        host = Host(module, multiprocessors=1, most_maxima_bytes=launch)
        scores, ids = search(host, arguments(call), 7)
        assert ids.tolist() == [list(range(599, 592, -1))]
        assert scores.tolist() == [[2.0 * i for i in range(599, 592, -1)]]


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("k", [9, 1025])
def test_neither_schedule_nor_device_shows(module, k, order):
    case = Case((40, 7, 3), (70, 0, 33, 5) * 3, 17, "special", ("holes", "holes"))
    given = arguments(Call(case, "float32"))
    first = search(Host(module), given, k)
    for host in ({}, {"multiprocessors": 9}, {"most_maxima_bytes": 9000, "most_query_bytes": 1}):
        found = search(Host(module, order, **host), given, k)
        np.testing.assert_array_equal(found[0].view(np.uint32), first[0].view(np.uint32))
        np.testing.assert_array_equal(found[1], first[1])


def given_of(queries, documents, k):
    """Arguments of a search of sizes that nothing is allocated for."""
    given = arguments(Call(Case((4,) * queries, (3,), 16), "bfloat16"))
    nothing = ("argmax", "token_scores", "rows_before", "best_scores", "best_ids", "allow")
    return {
        **given,
        **dict.fromkeys(nothing),
        "documents_count": documents,
        "candidate_count": documents,
        "k": k,
        "allow_stride": 0,
    }


@pytest.mark.parametrize(
    ("queries", "documents", "k", "host", "expected"),
    [
        (1, 10**6, 10, {"multiprocessors": 100}, (True, 1, 400)),
        (
            1,
            10**6,
            1024,
            {"multiprocessors": 100},
            (True, 1, 250),
        ),  # of the 256,511 documents of a launch
        (1, 1000, 10, {"multiprocessors": 100}, (True, 1, 7)),
        (300, 10**6, 10, {"multiprocessors": 100}, (True, 300, 1)),
        (2, 10**6, 1025, {}, (False, 2, 0)),
        (300, 10**6, 1025, {}, (False, 66, 0)),
    ],
)
def test_what_the_dispatch_chooses(module, queries, documents, k, host, expected):
    """Lists up to 1024, of splits of no fewer than k documents; queries that fit together."""
    given = given_of(queries, documents, k)
    assert module.search_plan(Host(module, **host).given(given)) == expected


def test_the_workspace_is_what_the_readme_says(module):
    """Lists: what scoring takes, 8 bytes a key of every split and 4 a score of one launch."""
    host = Host(module, multiprocessors=100)
    given = given_of(2, 10**6, 10)
    scoring = module.workspace_bytes(host.given(given))
    plan = module.plan(host.given(given))
    _, _, splits = module.search_plan(host.given(given))
    launch = plan["groups"] * plan["queries_per_group"] * plan["launch_items"]
    expected = scoring + 8 * 2 * 10 * splits + 4 * launch
    found = module.search_workspace_bytes(host.given(given))
    assert expected <= found < expected + 3 * 256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k = 0; expected 1 to 65536 on a CUDA device"),
        ({"k": 65537}, r"k = 65537; expected 1 to 65536 on a CUDA device; search on the CPU"),
        ({"documents_count": 2**32, "candidate_count": 2**32}, r"expected fewer than 2\^32 with k"),
        ({"argmax": 8, "rows_before": 8}, r"argmax or token_scores with k; expected neither"),
    ],
)
def test_what_is_refused(module, change, message):
    given = given_of(1, 5, 3)
    with pytest.raises(ValueError, match=message):
        module.search_workspace_bytes(Host(module).given({**given, **change}))


def test_compilers_see_an_operator():
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from simtile.ops import maxsim_topk  # noqa: F401 - defines the operator

    with FakeTensorMode():
        queries = torch.empty(3, 4, 17, device="cuda")
        tokens = torch.empty(60, 17, device="cuda")
        arguments = (queries, tokens, None, torch.arange(9), None, None, None, None)
        found = torch.ops.simtile.maxsim_topk(*arguments, False, False, False, 0.0, None, 5)
    assert [x.shape for x in found] == [(3, 5)] * 2
    assert [x.dtype for x in found] == [torch.float32, torch.int64]
    assert all(x.is_cuda for x in found)


@pytest.mark.gpu
@pytest.mark.parametrize(("documents", "k", "listed"), [*MANY, (30_000, 100, None), (9, 3, 5)])
@pytest.mark.parametrize("queries", [(2, 1), SEVERAL_LAUNCHES], ids=len)
def test_a_device_finds_the_best(documents, k, listed, queries):
    case = many_case(documents, k, queries)
    check_many(Call(case, "float32"), (Device(), Device()), k, listed)


@pytest.mark.gpu
@pytest.mark.parametrize("kinds", CODES, ids="-".join)
@pytest.mark.parametrize(("k", "listed"), [(10, None), (1500, None), (10, 300)])
def test_a_device_finds_the_best_of_codes(kinds, k, listed):
    lengths = np.random.default_rng(k).integers(0, 20, 3000)
    call = CodesCall(*kinds, (32, 9, 1, 130), tuple(lengths), 100, 3)
    check_many(call, (Device(), Device()), k, listed)


def tensors_on_a_device():
    import torch

    torch.manual_seed(0)
    tokens = torch.randn(5000, 128, device="cuda", dtype=torch.bfloat16)
    offsets = torch.arange(0, 5001, 50)
    queries = torch.randn(4, 32, 128, device="cuda")
    ids = torch.randint(-1, 100, (4, 60), device="cuda")
    allow = torch.rand(4, 100, device="cuda") < 0.7
    return queries, tokens, offsets, ids, allow


@pytest.mark.gpu
@pytest.mark.parametrize("k", [1, 10, 1500])
def test_public_calls_on_a_device(k):
    import simtile

    queries, tokens, offsets, ids, allow = tensors_on_a_device()
    for options in ({}, {"ids": ids}, {"allow": allow}, {"ids": ids, "allow": allow}):
        scored = {name: x for name, x in options.items() if name == "ids"}
        scores = simtile.maxsim_packed(queries, tokens, offsets, **scored, backend="cuda")
        found = simtile.maxsim_packed(queries, tokens, offsets, k=k, **options)
        arrays = {name: x.cpu().numpy() for name, x in options.items()}
        expected = best(scores.cpu().numpy(), arrays.get("ids"), arrays.get("allow"), k)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x.cpu().numpy(), y)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("k", [10, 1500])
def test_a_graph_captures_a_search(k):
    """The kernels alone: public calls copy offsets to the device."""
    import torch

    from simtile._maxsim_inputs import given, given_packed
    from simtile._maxsim_run import Options
    from simtile.ops import maxsim_cuda, maxsim_cuda_topk

    queries, tokens, offsets, ids, allow = tensors_on_a_device()
    sides = (
        given("queries", queries, None, "query_mask"),
        given_packed("tokens", tokens, offsets, None, "mask"),
    )
    own = maxsim_cuda.pairs(*sides, Options())

    def search():
        return [maxsim_cuda_topk.best(own, candidates, allow, k) for candidates in (None, ids)]

    search()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        search()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = search()
    queries.copy_(torch.randn_like(queries))
    allow.copy_(torch.rand_like(queries[:, 0, :100]) < 0.5)
    graph.replay()
    for ours, theirs in zip(captured, search(), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert torch.equal(x, y)


@pytest.mark.gpu
def test_memory_of_a_search():
    """Scores of all documents with all queries would be 400 MB."""
    import torch

    import simtile

    tokens = torch.randn(200_000, 32, device="cuda", dtype=torch.bfloat16)
    offsets = torch.arange(0, 200_001, 2)
    queries = torch.randn(1000, 8, 32, device="cuda")
    simtile.maxsim_packed(queries[:2], tokens, offsets, k=10)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    simtile.maxsim_packed(queries, tokens, offsets, k=10)
    assert torch.cuda.max_memory_allocated() - before < 150e6


@pytest.mark.parametrize("order", [0, 5])
def test_the_last_document_is_found(module, order):
    late(order, module)
