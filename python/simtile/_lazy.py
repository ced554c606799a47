"""`functools.cached_property` without the lock that it has before Python 3.12.

All objects of a class share that lock: threads wait for each other, and a child that is forked
while another thread computes a property waits for ever. What is computed here comes from what
never changes, so it does no harm if two threads compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property
else:

    class cached_property:
        def __init__(self, function: Callable[[Any], Any]) -> None:
            self.function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            # Found in the object itself from then on.
            found = instance.__dict__[self.name] = self.function(instance)
            return found
