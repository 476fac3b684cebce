"""Write docs/examples.md: what SAM changes in each example, and the results.

python docs/write_examples.py          the page, from the files and results.json
python docs/write_examples.py --run    train all six first (ten minutes on two cores)

The files and results.json are in examples/. `tests/docs/test_examples.py` compares the
committed page with what this file writes.
"""

import argparse
import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "examples.md"
FOLDER = PAGE.parents[1] / "examples"
RESULTS = FOLDER / "results.json"
EXAMPLES = {
    "mnist": ("MNIST with a convolutional network", "Flax NNX", "examples/mnist"),
    "resnet": (
        "Digits with a ResNet",
        "Flax linen, in place of `jax.value_and_grad`",
        "examples/imagenet",
    ),
    "language_model": (
        "A language model",
        "Flax linen and plain Optax, in the optimizer",
        "examples/lm1b",
    ),
}
INTRO = """# Three of Flax's examples, with plain Optax and with SAM

What SAM changes in code that you know: each is one of Flax's own examples, smaller,
with data that come inside packages (extra `demo`), written twice. Below are the
differences. This is a demonstration of code and **not evidence** for or against SAM:
nothing is tuned. What was tuned and measured is on the page [Evidence](evidence.md).
"""
LANGUAGE = """
What is known of SAM on language: little speaks for it in pretraining. Singh et al.
([arXiv:2502.02407](https://arxiv.org/abs/2502.02407)) find that plain SAM is often
worse than AdamW, even with twice the compute; what they propose instead is [Functional
SAM](recipes.md#language-models-functional-sam). In fine-tuning Bahri et al.
([arXiv:2110.08529](https://arxiv.org/abs/2110.08529)) report gains for T5, the largest
with few data. Watts et al. ([arXiv:2605.02105](https://arxiv.org/abs/2605.02105))
report that models pretrained with SAM forget less when they are fine-tuned or quantized
afterwards. We have not repeated any of this. Our example, where training and test loss
are the same and there is no gap to close, is behind with SAM after the same steps.
"""
PRINTED = """
## What they print

Run any of them from the root of the repository (none takes more than three minutes of
processor time; `--smoke` tries it out):

    python examples/mnist_sam.py

The last line that each printed, with one seed and equally many steps, so that SAM had
twice the gradients. The settings of both are the same and rho is 0.05 everywhere;
nothing was tuned. So the table shows that all six train, and **nothing about which is
better**: one seed and untuned settings cannot.

| example | test loss, plain | test loss, SAM | test accuracy, plain | with SAM |
|---|---|---|---|---|
"""


def diff(name):
    """What SAM changes: a unified diff with one line of context."""
    plain, sam = (FOLDER / f"{name}.py", FOLDER / f"{name}_sam.py")
    lines = difflib.unified_diff(
        plain.read_text("utf-8").splitlines(),
        sam.read_text("utf-8").splitlines(),
        f"examples/{plain.name}",
        f"examples/{sam.name}",
        lineterm="",
        n=1,
    )
    return "\n".join(lines)


def page(results):
    text = INTRO
    for name, (title, how, original) in EXAMPLES.items():
        text += f"\n## {title}\n\n{how}, after Flax's `{original}`.\n"
        text += f"\n```diff\n{diff(name)}\n```\n"
    text += LANGUAGE + PRINTED
    for name in EXAMPLES:
        plain, sam = results[name], results[f"{name}_sam"]
        cells = [plain["loss"], sam["loss"]]
        cells += [f"{r['accuracy']} %" for r in (plain, sam)]
        text += f"| `{name}.py` | " + " | ".join(cells) + " |\n"
    return text


def numbers(line):
    """The figures in a line that an example printed, as they were printed."""
    found = re.search(r"test loss (\S+), test accuracy (\S+) %", line)
    return {"loss": found[1], "accuracy": found[2]}


def run(name):
    """Train, and keep the last line."""
    command = [sys.executable, FOLDER / f"{name}.py"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    last = printed.stdout.splitlines()[-1]
    print(f"{name}: {last}", flush=True)
    return numbers(last) | {"last_line": last}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="train all six first")
    if parser.parse_args().run:
        names = [f"{name}{suffix}" for name in EXAMPLES for suffix in ("", "_sam")]
        results = {name: run(name) for name in names}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
