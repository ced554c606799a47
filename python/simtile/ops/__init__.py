"""Operators of simtile in torch.library, one file per operation; importing one imports torch.

`topk` is for arrays of any library, and imports none.
"""
