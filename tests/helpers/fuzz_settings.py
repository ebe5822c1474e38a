"""How many inputs a fuzz test tries: 300, or as many as SPT_FUZZ_EXAMPLES says.

SPT_FUZZ_EXAMPLES=5000 python -m pytest tests/fuzz
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get('SPT_FUZZ_EXAMPLES', '300'))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
