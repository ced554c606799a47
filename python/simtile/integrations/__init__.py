"""Look-alikes of other libraries' functions, one module each; none of those libraries is needed.

:mod:`simtile.integrations.faiss` and :mod:`simtile.integrations.sentence_transformers` are imported
by name; this package imports neither of them, nor torch.
"""
