"""The library against what its version 0.1.0 computed: nothing may have moved.

All rows: `pytest tests/core/test_recorded.py -m "slow or not slow"`.
"""

import numpy as np
import pytest
from recorded import record, recorded, rows

# Where sums are taken in another order last digits differ, by some 1e-15 a step. An
# entry that cancelled to next to nothing keeps the error of what it was made of, which
# is measured by the largest entry beside it.
RELATIVE, OF_THE_LARGEST = 1e-12, 1e-14

# One product of each kind is run every time, without devices; with the slow tests the
# others, and the other contexts, which are the same average entered in another way.
CHOSEN = {
    "sam",
    "m_sam",
    "friendly_sam",
    "look_sam(k=3)",
    "random_perturbation",
    "value_and_grad",
}
EVERY_TIME = {"whole batch", "micro-batches"}


def parameter(product, context):
    quick = context in EVERY_TIME and product in CHOSEN
    marks = [] if quick else [pytest.mark.slow]
    return pytest.param(product, context, marks=marks, id=f"{product}, {context}")


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        if isinstance(want[name], dict):
            assert_same(got[name], want[name])
            continue
        floor = OF_THE_LARGEST * np.max(np.abs(want[name]))
        np.testing.assert_allclose(
            got[name], want[name], rtol=RELATIVE, atol=floor, err_msg=name
        )


@pytest.fixture(scope="module")
def numbers():
    return recorded()


def test_every_row_is_in_the_file(numbers):
    assert list(numbers) == rows()


@pytest.mark.parametrize(("product", "context"), [parameter(*row) for row in rows()])
def test_as_recorded(numbers, product, context):
    assert_same(record(product, context), numbers[product, context])
