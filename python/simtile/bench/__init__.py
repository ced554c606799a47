"""`simtile bench`: the benchmarks of a checkout run one after the other, stored runs compared."""
