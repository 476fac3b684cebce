"""The three sets of the studies: disjoint, fixed for ever, tests for reports only."""

import hashlib
import json
import subprocess

import numpy as np
import pytest

from benchmarks.lib import blind, fixed_sets

SOURCES = {"fashion": fixed_sets.fashion(), "mnist": fixed_sets.mnist_5k()}
HASHES = {"fashion": "bab02d01a28be6d1", "mnist": "85bc36d70773e992"}
SIZES = {"fashion": (20_000, 10_000, 30_000), "mnist": (2_000, 1_000, 2_000)}


@pytest.mark.parametrize("name", SOURCES)
def test_no_image_that_trains_or_chooses_is_tested(name):
    sets = SOURCES[name].indices()
    assert tuple(map(len, sets)) == SIZES[name]
    assert len(np.unique(np.concatenate(sets))) == sum(SIZES[name])


@pytest.mark.parametrize("name", SOURCES)
def test_the_cut_never_changes(name):
    whole = np.concatenate(SOURCES[name].indices()).astype("<i8").tobytes()
    assert hashlib.sha256(whole).hexdigest()[:16] == HASHES[name]


def numbered(size):
    """Images that tell their number."""
    images = np.arange(size, dtype=np.float32).reshape(size, 1, 1, 1)
    return fixed_sets.Examples(images, (np.arange(size) * 7 % 10).astype(np.int32))


@pytest.mark.parametrize(("count", "noise"), [(50, 0.4), (60, 0.25), (30, 0.0)])
def test_exactly_that_share_of_the_labels_is_wrong(count, noise):
    pool = numbered(200)
    drawn = fixed_sets.draw(pool, count, noise, seed=3)
    where = drawn.examples.images.ravel().astype(int)
    assert len(set(where)) == count
    differ = drawn.examples.labels != pool.labels[where]
    np.testing.assert_array_equal(differ, drawn.wrong)
    assert differ.sum() == round(noise * count)
    other = fixed_sets.draw(pool, count, noise, seed=4)
    assert set(where) != set(other.examples.images.ravel().astype(int))


def test_images_are_scaled_by_the_pool_alone():
    def read():
        return numbered(40), {"official": numbered(3)}

    source = fixed_sets.Source(read, pool=20, validation=10, test=10)
    pool, validation, _ = source.indices()
    sets = fixed_sets.tuning_sets(source)
    assert abs(sets.pool.images.mean()) < 1e-6
    assert abs(sets.pool.images.std() - 1) < 1e-6
    found = sets.validation.images.ravel() * pool.std() + pool.mean()
    np.testing.assert_allclose(found, validation, atol=1e-4)


def test_missing_files_are_named_with_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as error:
        fixed_sets.tuning_sets(fixed_sets.fashion(tmp_path))
    assert all(name in str(error.value) for name in fixed_sets.FASHION_FILES)


@pytest.fixture
def committed(tmp_path):
    """A settings file in a repository, committed."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"rho": 0.1}))
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return path


@pytest.mark.slow  # a study's machinery, not the library
def test_tests_are_handed_out_for_committed_settings_only(committed):
    source = SOURCES["mnist"]
    with pytest.raises(TypeError, match="chosen blind"):
        fixed_sets.test_sets(source, {"rho": 0.1})
    permit = blind.Committed(committed)
    assert permit.settings == {"rho": 0.1}
    assert len(fixed_sets.test_sets(source, permit)["test"].labels) == 2000
    committed.write_text(json.dumps({"rho": 0.2}))
    with pytest.raises(blind.NotCommittedError, match="differs"):
        blind.Committed(committed)


def test_settings_that_were_never_committed_are_refused(committed):
    new = committed.with_name("new.json")
    new.write_text("{}")
    with pytest.raises(blind.NotCommittedError, match="--tune"):
        blind.Committed(new)
