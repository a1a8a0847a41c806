"""A checkpoint whose files are not what was written gives way to the one before."""

import shutil

import chex
import jax
import pytest

from rml.errors import UserError
from rml.training import CompiledTask, RunDirectory, fit, make_mesh
from rml.training.checkpoint import Checkpoints, restore_state
from rml.training.digests import DIGESTS, damage


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def delete(file):
    file.unlink()


@pytest.fixture(scope="module")
def compiled(make_task):
    return CompiledTask(make_task(), make_mesh())


@pytest.fixture(scope="module")
def trained(make_task, tmp_path_factory):
    """A run with checkpoints of steps 10 and 20, and its state after 20."""
    run = RunDirectory(tmp_path_factory.mktemp("run"), {"experiment": "toy"})
    return run, fit(make_task(), run, steps=20, checkpoint_every=10)


@pytest.fixture
def checkpoints(trained, tmp_path):
    return shutil.copytree(trained[0].checkpoints, tmp_path / "checkpoints")


def restore(directory, compiled, task):
    saved = Checkpoints(directory)
    try:
        return saved.restore(compiled.abstract_state, iter(task.batches()))
    finally:
        saved.close()


def same(a, b):
    data = [jax.random.key_data(state.key) for state in (a, b)]
    chex.assert_trees_all_equal(*data)
    chex.assert_trees_all_equal(a.replace(key=0), b.replace(key=0))


@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize("name", ["the largest", "state/manifest.ocdbt", "data/metadata"])
def test_the_one_before_is_used_with_a_warning(
    compiled, make_task, checkpoints, caplog, harm, name
):
    newest = checkpoints / "20"
    files = [path for path in newest.rglob("*") if path.is_file()]
    file = max(files, key=lambda p: p.stat().st_size) if "/" not in name else newest / name
    harm(file)
    step, state = restore(checkpoints, compiled, make_task())
    assert step == state.step == 10
    what = "is missing" if harm is delete else "has changed since it was written"
    assert f"step 20 in {checkpoints} cannot be read ({file.relative_to(newest)} {what})" in (
        caplog.text
    )
    assert (checkpoints.parent / "damaged-checkpoint-20").is_dir()


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{"])
def test_a_checkpoint_whose_digests_are_lost_or_damaged(
    trained, compiled, make_task, checkpoints, content
):
    """Without them, as before they were written, Orbax alone judges."""
    digests = checkpoints / "20" / DIGESTS
    digests.unlink() if content is None else digests.write_text(content)
    step, state = restore(checkpoints, compiled, make_task())
    assert step == (20 if content in (None, "{}") else 10)
    if step == 20:
        same(state, trained[1])


def test_every_file_of_every_item_is_looked_at_by_one_of_the_processes(checkpoints):
    newest = checkpoints / "20"
    assert not damage(newest)
    for file in [path for path in newest.glob("*/**/*") if path.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content + b"x")
        assert str(file.relative_to(newest)) in damage(newest)
        found = [damage(newest, part=i, parts=3) for i in range(3)]
        assert sorted(map(bool, found)) == [False, False, True]
        file.write_bytes(content)


def test_another_runs_checkpoint_is_read_whole_or_not_at_all(trained, compiled, checkpoints):
    same(restore_state(checkpoints, compiled.abstract_state), trained[1])
    flip(max((checkpoints / "20").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size))
    with pytest.raises(UserError, match=r"step 20 in .* has changed since it was written"):
        restore_state(checkpoints, compiled.abstract_state)
    shutil.rmtree(checkpoints)
    with pytest.raises(UserError, match="has no checkpoint; train it first"):
        restore_state(checkpoints, compiled.abstract_state)
