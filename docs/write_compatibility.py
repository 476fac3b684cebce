"""Write docs/compatibility.md: what stands in a chain with SAM.

    python docs/write_compatibility.py

writes the page anew. The rows are here; `tests/docs/test_compatibility.py` has a check
for each, and compares the committed page with what this file writes.
"""

import dataclasses
from pathlib import Path

PAGE = Path(__file__).parent / "compatibility.md"
WORKS, RECIPE, REFUSED = "works", "recipe", "refused"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the page."""

    name: str
    verdict: str = WORKS
    note: str = ""


#: Names in Optax. Each of them works behind SAM, with nothing to know.
OPTIMIZERS = """
adabelief adadelta adafactor adagrad adam adamax adamw adan amsgrad fromage lamb lars
lion nadamw noisy_sgd novograd optimistic_gradient_descent radam rmsprop rprop sgd
sign_sgd sm3 yogi contrib.acprop contrib.ademamix contrib.adopt contrib.cocob
contrib.dadapt_adamw contrib.dog contrib.dowg contrib.galore contrib.madgrad
contrib.mechanize contrib.muon contrib.prodigy contrib.simplified_ademamix
""".split()
TRANSFORMATIONS = """
adaptive_grad_clip add_noise apply_every centralize clip_by_block_rms
clip_by_global_norm ema flatten keep_params_nonnegative normalize_by_update_norm
snapshot zero_nans contrib.normalize
""".split()

ACCUMULATED = "m-SAM over the accumulated batches"
JUDGES = "it judges what comes out"
TAKES_NONE = "pass the clean gradient, or put it behind, where `None` works"
VALUE = "pass `value=`, the clean loss: SAM lets it through"
ON_THE_ASCENT = (
    "put the mask on the ascent: `sharpness_aware(optax.selective_transform("
    "steepest_ascent(rho), freeze_mask=frozen))`"
)

BEHIND = [
    *(Row(f"`{name}`") for name in [*OPTIMIZERS, *TRANSFORMATIONS]),
    Row("`partition` by label (muon and adamw)"),
    Row("`named_chain`"),
    Row(
        "`contrib.schedule_free`",
        note="train at its parameters, evaluate at `schedule_free_eval_params`",
    ),
    Row("`contrib.momo`", note=VALUE),
    Row("`contrib.momo_adam`", note=VALUE),
    Row("`polyak_sgd`", note=VALUE),
    Row("`contrib.reduce_on_plateau`", note=VALUE),
    Row(
        "`contrib.sophia`",
        note="pass `obj_fn=`, which SAM takes for `value_fn=`: the Hessian is the one "
        "at the parameters",
    ),
    Row(
        "`scale_by_backtracking_linesearch`",
        note="along the climbed gradient, on the loss as it is; pass `value=`, `grad=` "
        "(clean) and a `value_fn` that closes over the batch",
    ),
    Row("`scale_by_zoom_linesearch`", note="as above"),
    Row("`lbfgs`", note="as above; its curvature is that of the climbed gradients"),
    Row(
        "`value_and_grad_from_state`",
        note="the value and gradient that a line search has stored are clean ones",
    ),
    Row("`MultiSteps`", note=ACCUMULATED),
    Row("`apply_if_finite`", note=JUDGES),
    Row(
        "`lookahead`",
        RECIPE,
        "its parameters are pairs, of which SAM can climb but one: differentiate by "
        "`value_and_grad` at `params.fast`",
    ),
    Row(
        "`contrib.differentially_private_aggregate`",
        REFUSED,
        "it needs the gradient of each example, and SAM returns one",
    ),
]
AROUND = [
    Row("`inject_hyperparams(sam)`", note="rho in the state"),
    Row("`inject_hyperparams` of a whole chain"),
    Row(
        "`inject_hyperparams(m_sam)`",
        RECIPE,
        'name what must be known in Python: `static_args=("microbatch_size",)`',
    ),
    Row("`contrib.schedule_free`", note="the same numbers as behind"),
    Row(
        "`conditionally_transform`",
        note="SAM on some steps, the plain gradient on the others",
    ),
    Row(
        "`conditionally_mask`",
        RECIPE,
        "the other steps are lost: you want `conditionally_transform`",
    ),
    Row(
        "`MultiSteps`",
        RECIPE,
        "it climbs along the average, but differentiates the last batch alone: put it "
        f"behind, for {ACCUMULATED}",
    ),
    Row(
        "`apply_if_finite`",
        RECIPE,
        f"it judges the clean gradient only: put it behind, where {JUDGES}",
    ),
    Row(
        "`MultiSteps`, `update(None, ...)`",
        REFUSED,
        f"it adds up gradients before SAM could take them: {TAKES_NONE}",
    ),
    Row(
        "`masked`, `update(None, ...)`",
        REFUSED,
        f"it masks the gradient before SAM could take one: {TAKES_NONE}",
    ),
    Row(
        "`apply_if_finite`, `update(None, ...)`",
        REFUSED,
        f"it would skip with zeros like the gradient that came in: {TAKES_NONE}",
    ),
    Row(
        "`contrib.mechanize`",
        RECIPE,
        "it would tune the learning rate with the clean gradients: put it behind",
    ),
    Row(
        "`lookahead`",
        RECIPE,
        "it hands no `value_fn` on: differentiate by `value_and_grad` at `params.fast`",
    ),
    Row(
        "`flatten`",
        REFUSED,
        "the loss would be given one flat vector: put it behind",
    ),
]
SOME_PARAMETERS = [
    Row("`None` in place of a leaf (Equinox, NNX)"),
    Row("LoRA, the base weights closed over"),
    Row("LoRA, base and adapters in one tree", RECIPE, ON_THE_ASCENT),
    Row(
        "`selective_transform` of the ascent",
        note="the norm is that of the trained leaves",
    ),
    Row("`partition` of ascents", note="each label has its own rho and norm"),
    Row(
        "`freeze` behind SAM",
        RECIPE,
        f"frozen leaves would still climb, and count in the norm: {ON_THE_ASCENT}",
    ),
    Row("`masked` around SAM", REFUSED, ON_THE_ASCENT),
    Row("`partition` around SAM", REFUSED, ON_THE_ASCENT),
    Row(
        "complex parameters, `contrib.split_real_and_imaginary`",
        REFUSED,
        "hold real and imaginary parts as two leaves",
    ),
]
IN_FRONT = [
    Row(
        "`chain(X, sam(rho))`",
        note="X changes the direction of the climb and nothing else: clipping does "
        "nothing there, weight decay joins the climb",
    ),
    Row(
        "`sharpness_aware(chain(ema(0.9), steepest_ascent(rho)))`",
        note="climb along an average of gradients",
    ),
    Row(
        "an average of the weights, `ema` or `incremental_update`",
        note="the parameters are never anything but clean",
    ),
]
SECTIONS = {
    "Behind SAM: `chain(sam(rho), X)`": BEHIND,
    "Around SAM: `X(chain(sam(rho), ...))`": AROUND,
    "Some parameters only": SOME_PARAMETERS,
    "In front of SAM, inside it, beside it": IN_FRONT,
}


def page():
    """The rows as Markdown; those that work without a word share a line."""
    lines = [
        "# What works with what",
        "",
        "Each line is a test in `tests/docs/test_compatibility.py`; "
        "`docs/write_compatibility.py` writes this page.",
        "",
        "- *works*: the numbers are those of the bare optimizer that is handed SAM's "
        "gradient.",
        "- *recipe*: it runs, or is refused, but you want something else: the note "
        "says what. That is tested too.",
        "- *refused*: an error says why.",
    ]
    for title, rows in SECTIONS.items():
        silent = [row.name for row in rows if row.verdict == WORKS and not row.note]
        lines += ["", f"## {title}", ""]
        if silent:
            lines += ["Works as it is: " + ", ".join(silent) + ".", ""]
        lines += ["| | verdict | |", "|---|---|---|"]
        lines += [
            f"| {row.name} | {row.verdict} | {row.note} |"
            for row in rows
            if row.name not in silent
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
