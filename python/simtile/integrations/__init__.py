"""Look-alikes of what other libraries have, one module each.

Functions need none of those libraries; what derives from their classes (losses, pooling,
evaluators) or calls them (BM25, mining again during training) needs the one it is named after.

They are imported by name, :mod:`simtile.integrations.faiss` for one; this package imports none of
them, nor torch.
"""
