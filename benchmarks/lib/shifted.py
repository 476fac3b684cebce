"""Depthwise convolutions for CPUs: sums of shifted products, with their own gradient.

XLA's depthwise convolution is many times slower on a CPU, and so is the gradient that
JAX would derive of the sum: it pads once for each tap, and reduces once for each tap.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x, kernel, width: int, stride: int):
    """`x` (n, height, width, channels) with a `kernel` (taps, channels), whose taps go
    row by row; padded as "SAME" is."""
    return total(slices(x, width, stride), kernel)


def forward(x, kernel, width: int, stride: int):
    return depthwise(x, kernel, width, stride), (x, kernel)


def backward(width: int, stride: int, kept, gradient):
    x, kernel = kept
    return of_input(x, kernel, gradient, width, stride), of_kernel(
        x, gradient, width, stride
    )


depthwise.defvjp(forward, backward)


def of_input(x, kernel, gradient, width: int, stride: int):
    """The convolution with the kernel turned around, of the gradient with stride - 1
    zeros between its places."""
    pads = [(0, 0, 0)]
    for size, short in zip(x.shape[1:3], gradient.shape[1:3], strict=True):
        low = width - 1 - padding(size, width, stride)[0]
        high = size + width - 1 - low - ((short - 1) * stride + 1)
        pads.append((low, high, stride - 1))
    spread = jax.lax.pad(gradient, jnp.zeros((), x.dtype), [*pads, (0, 0, 0)])
    return total(windows(spread, width, 1, x.shape[1:3]), kernel[::-1])


def of_kernel(x, gradient, width: int, stride: int):
    """For each row of taps one matrix product over images and rows: of all columns of
    the input with all of the gradient. The taps are sums of its diagonals."""
    padded, (rows, columns) = pad(x, width, stride), gradient.shape[1:3]
    place, taps = np.arange(columns), []
    for i in range(width):
        part = padded[:, i : i + (rows - 1) * stride + 1 : stride]
        products = jnp.einsum("nhvc,nhwc->cvw", part, gradient)
        taps += [products[:, j + stride * place, place].sum(-1) for j in range(width)]
    return jnp.stack(taps)


def total(parts: list, kernel):
    return sum(part * tap for part, tap in zip(parts, kernel, strict=True))


def slices(x, width: int, stride: int) -> list:
    """For each tap of a kernel what it meets, row by row."""
    sizes = [-(-size // stride) for size in x.shape[1:3]]
    return windows(pad(x, width, stride), width, stride, sizes)


def windows(padded, width: int, stride: int, sizes) -> list:
    # Behind the barrier XLA reads it for each tap; without it, it makes it anew.
    padded = jax.lax.optimization_barrier(padded)
    rows, columns = ((size - 1) * stride + 1 for size in sizes)
    return [
        padded[:, i : i + rows : stride, j : j + columns : stride]
        for i in range(width)
        for j in range(width)
    ]


def pad(x, width: int, stride: int):
    rows, columns = (padding(size, width, stride) for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))


def padding(size: int, width: int, stride: int) -> tuple[int, int]:
    """Before and behind; the odd one is behind."""
    whole = max((-(-size // stride) - 1) * stride + width - size, 0)
    return whole // 2, whole - whole // 2
