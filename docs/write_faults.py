"""Write docs/faults.md: what a broken batch does, and which tests show it.

    python docs/write_faults.py

writes the page anew. `tests/docs/test_faults.py` has the tests that are named here, and
compares the committed page with what this file writes.
"""

import dataclasses
from pathlib import Path

PAGE = Path(__file__).parent / "faults.md"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, what then happens, and the tests that show it."""

    name: str
    what_happens: str
    tests: tuple[str, ...]


FAULTS = [
    Fault(
        "A batch with NaN",
        "The clean gradient is not finite, so there is no climb, and what comes out "
        "is not finite either. `apply_if_finite` behind SAM skips the step: parameters "
        "and the optimizer's state are what they were, to the bit. No state of SAM's "
        "keeps a NaN: the averages of `friendly_sam` and `momentum_sam` leave such a "
        "batch out, schedules and counters count it. An average of your own in the "
        "ascent, `chain(ema(0.9), steepest_ascent(rho))`, would keep it, and SAM would "
        "be off from then on, without a word: wrap the ascent, "
        "`sharpness_aware(optax.apply_if_finite(ascent, n))`.",
        (
            "test_batch_with_nan",
            "test_sam_is_still_on_after_a_batch_with_nan",
            "test_an_average_of_ones_own_wants_a_guard",
            "test_without_a_guard_the_fault_is_in_the_open",
        ),
    ),
    Fault(
        "A loss that is infinite at the climbed point only",
        "The same, and `apply_if_finite` must stand behind SAM to see it: around SAM "
        "it looks at the clean gradient. To take the clean gradient in place of a "
        "broken one, choose with `combine=`.",
        (
            "test_loss_that_is_infinite_at_the_climbed_point_only",
            "test_fall_back_to_the_clean_gradient",
        ),
    ),
    Fault(
        "A sub-batch, or a device, with nothing but padding",
        "A mean over the true examples of the part is 0/0, and the average over all "
        "parts is NaN with it: the step is lost. With `jnp.maximum(count, 1)` under it "
        "the part counts as a gradient of zero, with the weight of a full one. To give "
        "every example its share, weigh before you split: `weights = mask * (size / "
        "mask.sum())` over the whole batch, and `jnp.mean(weights * losses)` in the "
        "loss; the climbs do not see the size of the weights.",
        (
            "test_mean_over_the_true_examples_of_a_part_without_any",
            "test_guarded_mean_counts_a_part_without_examples_as_zero",
            "test_weights_of_the_whole_batch_give_every_example_its_share",
        ),
    ),
    Fault(
        "One broken batch after the other",
        "`apply_if_finite(optimizer, n)` skips n of them, then lets the next one "
        "through: Optax's way of making a fault visible.",
        ("test_patience_ends",),
    ),
]


def page():
    """The faults as Markdown, with the names of the tests."""
    lines = [
        "# When something breaks",
        "",
        "SAM has a second place where a step can break, the climbed point. What then "
        "happens, with the tests in `tests/docs/test_faults.py` "
        "(`docs/write_faults.py` writes this page). The chain is",
        "",
        "```python",
        "tx = optax.chain(optax_sam.sam(rho=0.05), "
        "optax.apply_if_finite(optax.adamw(1e-3), 5))",
        "```",
    ]
    for fault in FAULTS:
        names = ", ".join(f"`{test}`" for test in fault.tests)
        lines += [
            "",
            f"## {fault.name}",
            "",
            fault.what_happens,
            "",
            f"Tests: {names}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
