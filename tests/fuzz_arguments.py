"""Arguments of public calls for `fuzz_calls.py`, as Python source: first good ones, then worse.

What the source may name (`f`, `padded`, `q`, …) is in `NAMES`.
"""

import ml_dtypes
import numpy as np

import simtile

# What the source may name


def f(*shape, dtype="float32", seed=0):
    """Numbers of any type that NumPy has, about 1."""
    x = np.random.default_rng(seed).standard_normal(shape)
    if dtype == "bfloat16":
        return x.astype(ml_dtypes.bfloat16)
    kind = np.dtype(dtype).kind
    if kind in "iu":
        x = np.rint(3 * abs(x) if kind == "u" else 3 * x)
    if kind == "b":
        x = x > 0
    if kind == "V":
        return np.zeros(shape, dtype)
    return x.astype(dtype)


def array(values, dtype):
    return np.array(values, dtype)


def poked(x, value, seed=0):
    """With one other value at some place."""
    x = np.array(x)
    if x.size and x.dtype.kind in "fV" and x.dtype.names is None:
        x.reshape(-1)[np.random.default_rng(seed).integers(x.size)] = value
    return x


def padded(x):
    """A part of wider rows."""
    wide = np.full((*x.shape[:-1], x.shape[-1] + 3), np.ones(1, x.dtype)[0], x.dtype)
    wide[..., :-3] = x
    return wide[..., :-3]


def odd(x):
    """At an address that is no multiple of anything."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved = raw[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def far(x):
    """Rows that lie a megabyte apart."""
    rows = np.zeros((len(x), 1 << 20), np.uint8)
    near = rows[:, : x[0].nbytes].view(x.dtype).reshape(x.shape)
    near[...] = x
    return near


def same(x):
    """The first row at every place, once in memory."""
    return np.broadcast_to(x[:1], x.shape)


def frozen(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def turned(x):
    """Of the other byte order."""
    return x.astype(x.dtype.newbyteorder())


def fortran(x):
    return np.asfortranarray(x)


def q(x, kind):
    dim = x.shape[1]
    ranges = None
    if kind in ("int8", "uint8", "int4"):
        ranges = np.stack([np.full(dim, -3, np.float32), np.full(dim, 3, np.float32)])
    return simtile.quantize(x, kind, ranges=ranges)


def bits(rows, dim, seed=0):
    """Packed: uint8 [rows, ⌈dim/8⌉]."""
    return simtile.quantize(f(rows, dim, seed=seed), "binary").codes


def residual(rows, dim, seed=0):
    centroids = f(4, dim, seed=7)
    codec = simtile.ResidualCodec(centroids, [-0.5, -0.1, 0.1, 0.5], [-0.3, 0.0, 0.3], bits=2)
    return codec.encode(f(rows, dim, seed=seed))


NAMES = {x.__name__: x for x in (f, array, poked, padded, odd, far, same, frozen, turned, fortran)}
NAMES |= {"q": q, "bits": bits, "residual": residual, "np": np, "simtile": simtile}
NAMES |= {"nan": np.nan, "inf": np.inf}

# Good arguments

FLOATS = ("float32", "float32", "float64", "float16", "bfloat16")
KINDS = ("int8", "uint8", "int4", "int8_vector", "int4_vector", "binary")
ROWS, DIMS = (0, 1, 2, 3, 5, 9), (1, 2, 7, 8, 16, 33)


class Draw:
    """Draws sources from a seed."""

    def __init__(self, rng):
        self.rng = rng
        self.seed = int(rng.integers(1000))

    def of(self, values):
        return values[int(self.rng.integers(len(values)))]

    def chance(self, share):
        return self.rng.random() < share

    def floats(self, *shape, dtypes=FLOATS):
        self.seed += 1
        return f"f({', '.join(map(str, shape))}, dtype={self.of(dtypes)!r}, seed={self.seed})"

    def integers(self, low, high, *shape):
        drawn = self.rng.integers(low, max(high, low + 1), shape)
        return f"array({drawn.tolist()}, 'int64')"

    def mask(self, *shape):
        return f"array({(self.rng.random(shape) < 0.6).tolist()}, bool)"

    def offsets(self, rows, count):
        cuts = sorted(int(x) for x in self.rng.integers(0, rows + 1, max(count - 1, 0)))
        return f"array({[0, *cuts, rows] if count else [0]}, 'int64')"

    def some(self, **options):
        """Each of them perhaps."""
        return {name: make() for name, make in options.items() if self.chance(0.35)}


def losses(d):
    n, dim = max(1, d.of(ROWS)), d.of(DIMS)
    m = n + d.of((0, 0, 1, 4))
    given = {"queries": d.floats(n, dim), "documents": d.floats(m, dim)}
    return n, m, dim, given


def info_nce_grad(d):
    n, m, dim, given = losses(d)
    targets = d.chance(0.3)
    given |= d.some(
        negatives=lambda: d.floats(n, d.of((0, 1, 3)), dim),
        temperature=lambda: d.of(("0.05", "1.0", "np.float32(0.3)")),
        normalize=lambda: d.of(("True", "False")),
        reduction=lambda: d.of(("'mean'", "'sum'", "'none'")),
        document_ids=lambda: d.integers(0, 3, m),
        threads=lambda: d.of(("1", "3")),
    )
    if targets:
        given["targets"] = d.integers(0, m, n)
    else:
        pair = "('query_to_doc', 'doc_to_query')"
        given |= d.some(directions=lambda: pair, partition=lambda: "'per_direction'")
    return given


def siglip_loss(d):
    _, _, _, given = losses(d)
    return given | d.some(
        temperature=lambda: d.of(("0.1", "2.0")),
        bias=lambda: d.of(("-10.0", "0", "3.5")),
        normalize=lambda: d.of(("True", "False")),
        reduction=lambda: d.of(("'mean'", "'sum'")),
    )


def triplet_loss(d):
    n, dim = max(1, d.of(ROWS)), d.of(DIMS)
    given = {name: d.floats(n, dim) for name in ("anchor", "positive", "negative")}
    metrics = ("'euclidean'", "'squared_euclidean'", "'cosine'", "'manhattan'")
    return given | d.some(
        margin=lambda: d.of(("0.0", "1.0", "5")),
        metric=lambda: d.of(metrics),
        normalize=lambda: "True",
        reduction=lambda: d.of(("'mean'", "'sum'", "'none'")),
    )


def batch_hard_triplet_loss(d):
    n = max(1, d.of(ROWS))
    given = {"embeddings": d.floats(n, d.of(DIMS)), "labels": d.integers(0, 3, n)}
    metrics = ("'euclidean'", "'squared_euclidean'", "'cosine'")
    return given | d.some(margin=lambda: d.of(("0.0", "1.0", "5")), metric=lambda: d.of(metrics))


def alignment(d):
    n, dim = max(1, d.of(ROWS)), d.of(DIMS)
    given = {"x": d.floats(n, dim), "y": d.floats(n, dim)}
    return given | d.some(alpha=lambda: d.of(("1", "2.5")), normalize=lambda: "False")


def uniformity(d):
    given = {"x": d.floats(max(2, d.of(ROWS)), d.of(DIMS))}
    return given | d.some(t=lambda: d.of(("1", "2.5")), normalize=lambda: "False")


def anisotropy(d):
    return {"x": d.floats(max(2, d.of(ROWS)), d.of(DIMS))}


def maxsim(d, pairs=False):
    queries, dim = d.of((0, 1, 2, 3)), d.of(DIMS)
    documents = queries if pairs else d.of((0, 1, 2, 4))
    lq, ld = d.of((0, 1, 2, 5)), d.of((0, 1, 2, 7))
    given = {"queries": d.floats(queries, lq, dim), "documents": d.floats(documents, ld, dim)}
    if d.chance(0.3):
        parts = ", ".join(d.floats(d.of((0, 1, 3)), dim) for _ in range(documents))
        given["documents"] = f"[{parts}]"
    else:
        given |= d.some(document_mask=lambda: d.mask(documents, ld))
    return given | d.some(query_mask=lambda: d.mask(queries, lq), **scoring(d))


def maxsim_pairwise(d):
    return maxsim(d, pairs=True)


def scoring(d):
    return {
        "normalize": lambda: "True",
        "length_normalize": lambda: "True",
        "empty_score": lambda: d.of(("-1.5", "0")),
        "zero_rows": lambda: d.of(("'score'", "'pad'")),
        "return_argmax": lambda: "True",
        "return_token_scores": lambda: "True",
    }


def maxsim_packed(d):
    count, rows, dim = d.of((0, 1, 2, 4)), d.of((0, 1, 5, 9)), d.of(DIMS)
    rows = rows if count else 0
    queries = d.of((0, 1, 2, 3))
    coded = d.chance(0.4) and rows
    given = {"queries": d.floats(queries, d.of((0, 1, 3)), dim)}
    given["tokens"] = d.floats(rows, dim)
    if coded:
        kind = d.of(("int8", "uint8", "int8_vector", "binary"))
        tokens = f"q({d.floats(rows, dim)}, {kind!r})"
        given["tokens"] = d.of((tokens, tokens, f"residual({rows}, {dim})"))
    given["offsets"] = d.offsets(rows, count)
    options = scoring(d)
    if coded:
        for name in ("normalize", "zero_rows"):
            options.pop(name)
    given |= d.some(document_mask=lambda: d.mask(rows), **options)
    if d.chance(0.4):
        given["ids"] = d.integers(-1, count, queries, d.of((0, 1, 3)))
    if d.chance(0.4):
        given["k"] = d.of(("1", "2", "9"))
        given |= d.some(allow=lambda: d.mask(count))
    return given


def xtr_scores(d):
    given = maxsim(d)
    for name in ("length_normalize", "return_argmax", "return_token_scores"):
        given.pop(name, None)
    return given | d.some(
        top_k=lambda: d.of(("1", "3", "99")), divisor=lambda: d.of(("'found'", "'positive'"))
    )


def pool(d):
    n, length, dim = d.of((0, 1, 2, 4)), d.of((0, 1, 2, 7)), d.of(DIMS)
    shape = (n, length)
    given = {"token_embeddings": d.floats(n, length, dim)}
    if d.chance(0.4):
        shape = (length if n else 0,)
        given["token_embeddings"] = d.floats(*shape, dim)
        given["offsets"] = d.offsets(shape[0], n)
    given["mask"] = d.of(("None", d.mask(*shape), d.integers(0, 2, *shape)))
    how = d.of(("mean", "cls", "max", "last"))
    given["how"] = repr(how)
    if how == "mean":
        given |= d.some(weights=lambda: f"abs({d.floats(*shape, dtypes=('float32', 'float64'))})")
    return given | d.some(
        dim=lambda: str(d.rng.integers(1, dim + 1)), normalize=lambda: "False", threads=lambda: "2"
    )


def quantize(d):
    n, dim, kind = d.of(ROWS), d.of(DIMS), d.of(KINDS)
    given = {"x": d.floats(n, dim), "kind": repr(kind)}
    if kind in ("int8", "uint8", "int4"):
        ranges = f"array({[[-2.0] * dim, [2.0] * dim]}, 'float32')"
        given |= {"ranges": ranges} if n < 2 or d.chance(0.5) else {}
        if "ranges" not in given:
            given |= d.some(calibration=lambda: d.floats(5, dim), quantiles=lambda: "(0.1, 0.9)")
    return given


def searched(d):
    """Queries, documents, a metric, and how many of each."""
    asked, n, dim = d.of((0, 1, 2, 5)), d.of(ROWS), d.of(DIMS)
    given = {"queries": d.floats(asked, dim), "documents": d.floats(n, dim)}
    kind = d.of((None, None, "bits", *KINDS))
    metrics = ("'cosine'", "'dot'", "'l2'")
    if kind == "bits":
        given = {"queries": f"bits({asked}, {dim})", "documents": f"bits({n}, {dim}, 1)"}
        metrics = ("'hamming'",)
    elif kind is not None:
        given["documents"] = f"q({d.floats(n, dim)}, {kind!r})"
        if kind.endswith("_vector") and d.chance(0.3):
            given["queries"] = f"q({d.floats(asked, dim)}, 'int8_vector')"
    given["metric"] = d.of(metrics)
    masks = (d.mask(n), d.mask(asked, n), d.integers(0, n, 2) if n > 2 else d.mask(n))
    return given | d.some(allow=lambda: d.of(masks), threads=lambda: "2")


def topk(d):
    return searched(d) | {"k": d.of(("1", "3", "12", "np.int32(2)"))}


def range_search(d):
    return searched(d) | {"threshold": d.of(("0.0", "0.5", "4", "-inf", "np.float32(1)"))}


def merge_topk(d):
    asked, dim = d.of((0, 1, 3)), d.of(DIMS)
    part = f"simtile.topk(f({asked}, {dim}), f(5, {dim}, seed=1), {{}}, metric='dot')"
    parts = ", ".join(part.format(d.of((1, 2, 7))) for _ in range(d.of((1, 2, 3))))
    return {"results": f"[{parts}]", "metric": "'dot'"} | d.some(k=lambda: d.of(("1", "20")))


def mine_hard_negatives(d):
    n, dim, asked = max(3, d.of(ROWS)), d.of(DIMS), d.of((0, 1, 2, 5))
    given = {
        "queries": d.floats(asked, dim),
        "documents": d.floats(n, dim),
        "positives": d.integers(0, n, asked),
        "k": d.of(("1", "3")),
    }
    return given | d.some(
        range_min=lambda: d.of(("0", "2")),
        max_score=lambda: "0.5",
        relative_margin=lambda: "0.05",
        sampling=lambda: d.of(("'top'", "'random'")),
        ids=lambda: d.integers(0, 3, n),
        allow=lambda: d.mask(n),
        block_size=lambda: "2",
        metric=lambda: d.of(("'cosine'", "'dot'", "'l2'")),
    )


def flat_search(d):
    given = {"queries": d.floats(d.of((0, 1, 3)), 7), "k": d.of(("1", "3", "20"))}
    allow = ("array([11, 14], int)", d.mask(9), "[]")
    return given | d.some(allow=lambda: d.of(allow), nan=lambda: d.of(("'raise'", "'ignore'")))


def flat_score(d):
    asked = d.of((0, 1, 3))
    return {"queries": d.floats(asked, 7), "ids": d.integers(10, 19, asked, 2)}


def flat_add(d):
    n = d.of((0, 1, 2, 5))
    return {"x": d.floats(n, 7), "ids": f"array({list(range(50, 50 + n))}, 'int64')"}


def flat_remove(d):
    return {"ids": d.of(("[10, 12]", "array([18], 'int64')", "[]"))}


def tokens_search(d):
    asked, length = d.of((0, 1, 3)), d.of((0, 1, 4))
    given = {"queries": d.floats(asked, length, 7), "k": d.of(("1", "3", "20"))}
    return given | d.some(
        query_mask=lambda: d.mask(asked, length),
        allow=lambda: d.of(("array([11, 14], int)", d.mask(9))),
        prefilter=lambda: "20",
    )


def tokens_add(d):
    n = d.of((0, 1, 2))
    parts = ", ".join(d.floats(d.of((0, 1, 3)), 7) for _ in range(n))
    return {"x": f"[{parts}]", "ids": f"array({list(range(50, 50 + n))}, 'int64')"}
