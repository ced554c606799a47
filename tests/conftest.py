import os
import signal

from hypothesis import HealthCheck, settings

# dev: at the desk and in make test; ci: the same examples on every run, so that a red build can be
# repeated; few, fewest: where make test-deep runs quick tests once more, at other levels and
# sanitized; nightly: a search, of make nightly.
# deadline=None: the first call pays for page faults and waking threads.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **common)
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, **common)
settings.register_profile("few", max_examples=10, derandomize=True, database=None, **common)
settings.register_profile("fewest", max_examples=4, derandomize=True, database=None, **common)
settings.register_profile("nightly", max_examples=250, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# A shell starts what runs in the background with SIGINT ignored, and children inherit that: the
# tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
