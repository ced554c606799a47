import os

from hypothesis import HealthCheck, settings

# dev: at the desk and in make test; ci: the same examples on every run, so that a red build can be
# repeated; nightly: a search, in make test-deep.
# deadline=None: the first call pays for page faults and waking threads.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **common)
settings.register_profile("ci", max_examples=40, derandomize=True, database=None, **common)
settings.register_profile("nightly", max_examples=400, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
