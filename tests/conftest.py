"""Eight simulated devices, asked for before JAX starts; float64 where a test asks.

And the site, built once.
"""

import fcntl
import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path

# Most of the time goes to compiling: small programs, run once or twice, and often the
# same ones. XLA optimizes as ever, LLVM does not, and what was compiled once is read
# from a folder; scripts that tests start inherit both.
os.environ.update(
    {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(
            Path(__file__).parents[1] / ".pytest_cache" / "programs"
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        **os.environ,  # what is set already stays
    }
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_finish():
    """Thousands of collected tests are no garbage: looking for some among them took a
    fifteenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="module", autouse=True)
def no_programs_of_other_modules():
    """Forget what a module compiled: thousands of programs exhaust the memory maps of a
    process, and in jax 0.10 one of float64 may be found where float32 is meant."""
    yield
    jax.clear_caches()


DONE = itertools.count(1)


def pytest_runtest_teardown():
    """The same in the middle of a long module."""
    if next(DONE) % 250 == 0:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in float64: parity and theory are compared to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the path to what `make(path)` writes, made by whichever of
    the test processes asks first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name, make):
        path, part = shared / name, shared / f"{name}.part"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(part)
                part.replace(path)
        return path

    return get


@pytest.fixture(scope="session")
def site(once):
    """The folder of the site; needs the extra `docs` and is not skipped without it."""
    return once("site", build_site)


def build_site(folder):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
