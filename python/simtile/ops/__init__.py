"""Operators of simtile in torch.library, one file per operation; importing one imports torch."""
