"""Look-alikes of other libraries' functions, one module each; none of those libraries is needed.

They are imported by name, :mod:`simtile.integrations.faiss` for one; this package imports none of
them, nor torch.
"""
