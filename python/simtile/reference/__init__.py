"""Every operation of simtile in plain Python, written to be read, and in NumPy float64.

`<op>.py` holds lists and `math` only and is the definition of the operation; `<op>_numpy.py`
computes the same for sizes where lists are too slow. The kernels are tested against both.
"""
