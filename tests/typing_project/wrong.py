"""Mistakes in the use of optax_sam: a type checker finds one on each marked line."""

import optax_sam


def mistakes() -> None:
    optax_sam.smam(rho=0.05)  # wrong
    optax_sam.sam(rho="large")  # wrong
    optax_sam.sam(0.05, wehn=True)  # wrong
    optax_sam.sam(0.05, True)  # wrong
    optax_sam.esam(0.05)  # wrong
    optax_sam.value_and_grad(3, optax_sam.steepest_ascent())  # wrong
    optax_sam.m_sam(0.05, microbatch_size="8")  # wrong
    optax_sam.stateful_value_and_grad(len, 0.05)  # wrong
    optax_sam.transformation(optax_sam.Method())  # wrong
