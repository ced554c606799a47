"""What the CPU kernels run on."""

from __future__ import annotations

from typing import Any

from simtile import _core, _inputs


def cpu_info() -> dict[str, Any]:
    """Say what was found on this machine and what the CPU kernels use.

    Returns
    -------
    dict
        ``vendor``, ``brand``: the processor's own names (str or None);
        ``detected``: the ISA levels this machine can run, lowest first (list of str);
        ``level``: the one in use; ``forced``: whether ``SIMTILE_ISA`` chose it;
        ``threads``: the default number of threads; ``threads_source``: what decided it
        (``"set_num_threads"``, ``"SIMTILE_NUM_THREADS"``, ``"OMP_NUM_THREADS"``, ``"affinity"``
        or ``"cgroup"``); ``l1d``, ``l2``, ``l3``: cache sizes in bytes (int or None).

    Raises
    ------
    ValueError
        ``SIMTILE_ISA`` is not a level of this build, or an environment variable for threads is
        not a number of threads.
    RuntimeError
        This machine cannot run the level that ``SIMTILE_ISA`` names.

    Examples
    --------
    >>> import simtile
    >>> found = simtile.cpu_info()
    >>> found["level"] in found["detected"], found["threads"] >= 1
    (True, True)
    """
    return dict(_core.cpu_info())


def set_num_threads(n: int | None) -> None:
    """Set how many threads calls use that are not given ``threads=``.

    It precedes ``SIMTILE_NUM_THREADS``, ``OMP_NUM_THREADS`` and what the affinity mask and the
    cgroup allow.

    Parameters
    ----------
    n : int or None
        From 1 to 1024; None removes the setting.

    Raises
    ------
    TypeError, ValueError
        ``n`` is not such a number.

    Examples
    --------
    >>> import simtile
    >>> simtile.set_num_threads(2)
    >>> simtile.cpu_info()["threads"], simtile.cpu_info()["threads_source"]
    (2, 'set_num_threads')
    >>> simtile.set_num_threads(None)
    """
    _core.set_num_threads(_inputs.check_threads(n, "n") or None)
