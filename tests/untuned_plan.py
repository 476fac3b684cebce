"""What the tests of untuned.py share."""

from benchmarks.accuracy import untuned
from benchmarks.lib import fixed_sets, rules

PLAN = untuned.plan(fixed_sets.FASHION)
ROWS = 1 + 2 + len(rules.RULES)  # the base, what is tuned, and the rules


def frozen_rules() -> dict[str, dict]:
    numbers = {
        "share of the loss": 0.1,
        "share of the weights": 0.01,
        "momentum SAM": 1.0,
    }
    return {
        rule.name: {
            "method": rule.method,
            "number": numbers.get(rule.name, rule.number),
            "published": rule.name not in numbers,
        }
        for rule in rules.RULES
    }
