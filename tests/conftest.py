"""Eight simulated devices, asked for before JAX starts; float64 where a test asks."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """Run the test in float64: parity and theory are compared to many digits."""
    with jax.enable_x64(True):
        yield
