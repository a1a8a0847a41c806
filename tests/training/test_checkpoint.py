"""A checkpoint whose files are not what was written gives way to the one before.

Whatever else fails leaves every file where it is.
"""

import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
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


def become_a_directory(file):
    file.unlink()
    file.mkdir()


def link_to_itself(file):
    file.unlink()
    file.symlink_to(file)


def fail_to_read(file):
    """Reading a process's memory at address 0 is an input/output error, as of a failing disk."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


PASSING = {
    become_a_directory: "Is a directory",
    link_to_itself: "Too many levels of symbolic links",
    fail_to_read: "Input/output error",
}


def largest(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def contents(directory):
    """Every file below a directory, byte for byte; what cannot be read by its name alone."""

    def content(path):
        try:
            return path.read_bytes()
        except OSError as error:
            return error.errno

    return {path.relative_to(directory): content(path) for path in directory.rglob("*")}


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


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip, truncate, delete])
@pytest.mark.parametrize("name", ["the largest", "state/manifest.ocdbt", "data/metadata"])
def test_the_one_before_is_used_with_a_warning(
    compiled, make_task, checkpoints, caplog, harm, name
):
    newest = checkpoints / "20"
    file = largest(newest) if "/" not in name else newest / name
    harm(file)
    step, state = restore(checkpoints, compiled, make_task())
    assert step == state.step == 10
    what = "is missing" if harm is delete else "has changed since it was written"
    assert f"step 20 in {checkpoints} cannot be read ({file.relative_to(newest)} {what})" in (
        caplog.text
    )
    assert (checkpoints.parent / "damaged-checkpoint-20").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "{}", "[]", "[1]", '"20"', "{", b"\xff"])
def test_a_checkpoint_whose_digests_are_lost_or_damaged(
    trained, compiled, make_task, checkpoints, caplog, content
):
    """Without them, as before they were written, Orbax alone judges."""
    digests = checkpoints / "20" / DIGESTS
    if content is None:
        digests.unlink()
    else:
        digests.write_bytes(content if isinstance(content, bytes) else content.encode())
    step, state = restore(checkpoints, compiled, make_task())
    assert step == (20 if content in (None, "{}") else 10)
    if step == 20:
        same(state, trained[1])
    warned = f"checkpoint {checkpoints / '20'} has no {DIGESTS}" in caplog.text
    assert warned == (content is None)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [delete, lambda file: file.write_bytes(b"")])
def test_what_orbax_notes_of_a_commit_may_be_lost_in_a_power_cut(
    trained, compiled, make_task, checkpoints, harm
):
    """It is written after the digests and not flushed before the checkpoint gets its name."""
    beside = [path for path in (checkpoints / "20").iterdir() if path.is_file()]
    notes = [path for path in beside if path.name != DIGESTS]
    assert notes
    for file in notes:
        harm(file)
    step, state = restore(checkpoints, compiled, make_task())
    assert step == 20
    same(state, trained[1])
    same(restore_state(checkpoints, compiled.abstract_state), trained[1])


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
    flip(largest(checkpoints / "20"))
    with pytest.raises(UserError, match=r"step 20 in .* has changed since it was written"):
        restore_state(checkpoints, compiled.abstract_state)
    shutil.rmtree(checkpoints)
    with pytest.raises(UserError, match="has no checkpoint; train it first"):
        restore_state(checkpoints, compiled.abstract_state)


@pytest.mark.slow
@pytest.mark.parametrize("harm", PASSING)
@pytest.mark.parametrize("name", ["the largest", "data/metadata", DIGESTS])
def test_a_file_that_cannot_be_read_now_is_no_damage(
    compiled, make_task, checkpoints, tmp_path, harm, name
):
    newest = checkpoints / "20"
    file = largest(newest) if name == "the largest" else newest / name
    content = file.read_bytes()
    harm(file)
    before = contents(tmp_path)
    message = (
        f"checkpoint of step 20 in {checkpoints} cannot be read now: {file}: {PASSING[harm]}; "
        "it stays where it is, and the same command can be tried again"
    )
    for read in (
        lambda: restore(checkpoints, compiled, make_task()),
        lambda: restore_state(checkpoints, compiled.abstract_state),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == message
        assert contents(tmp_path) == before
    file.rmdir() if file.is_dir() else file.unlink()
    file.write_bytes(content)
    assert restore(checkpoints, compiled, make_task())[0] == 20


def test_without_digests_what_orbax_cannot_read_stays(compiled, make_task, checkpoints, tmp_path):
    newest = checkpoints / "20"
    (newest / DIGESTS).unlink()
    manifest = newest / "state" / "manifest.ocdbt"
    content = manifest.read_bytes()
    link_to_itself(manifest)
    before = contents(tmp_path)
    message = (
        rf"step 20 in .* cannot be read now: \"{manifest}\": Too many levels of symbolic links;"
    )
    with pytest.raises(UserError, match=message):
        restore(checkpoints, compiled, make_task())
    assert contents(tmp_path) == before
    manifest.unlink()
    manifest.write_bytes(content[:-1])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="Error decoding manifest") as caught:
        restore(checkpoints, compiled, make_task())
    assert not isinstance(caught.value, UserError)
    assert contents(tmp_path) == before


def test_a_lack_of_memory_is_no_damage(compiled, checkpoints, tmp_path):
    class Greedy:
        def set_state(self, state):
            bytearray(1 << 62)

    before = contents(tmp_path)
    saved = Checkpoints(checkpoints)
    with pytest.raises(MemoryError):
        saved.restore(compiled.abstract_state, Greedy())
    saved.close()
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_model_of_another_width_is_refused_at_every_start(make_task, tmp_path):
    run = RunDirectory(tmp_path / "run", {"experiment": "toy"})
    fit(make_task(), run, steps=20, log_every=5, checkpoint_every=10)
    before = contents(run.path)
    assert before[Path("metrics.jsonl")].count(b"\n") == 4 + 1
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            fit(make_task(width=48), run, steps=40, log_every=5)
        assert str(caught.value) == (
            f"checkpoint of step 20 in {run.checkpoints} does not fit this config: "
            "params.Dense_0.kernel is float32[32, 10] there, float32[48, 10] now (and 8 more "
            "leaves); use the config that wrote it, or another run directory"
        )
        assert contents(run.path) == before


def narrow(state):
    return state.replace(step=jax.ShapeDtypeStruct((), jnp.int16, sharding=state.step.sharding))


def forget_the_parameters(state):
    return state.replace(params={})


def average(state):
    return state.replace(ema_params=state.params)


def lose_an_empty_part(state):
    return state.replace(extra={"queue": {}})


def another_key(state):
    key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    return state.replace(
        key=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=state.key.sharding)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (narrow, "step is int32[] there, int16[] now;"),
        (
            forget_the_parameters,
            "params.Dense_0.bias is float32[10] there, absent now (and 3 more leaves);",
        ),
        (average, "ema_params.Dense_0.bias is absent there, float32[10] now (and 3 more leaves);"),
        (lose_an_empty_part, "extra.queue is absent there, empty now (and 1 more leaf);"),
        (another_key, "key is uint32[2] there, uint32[4] now;"),
    ],
)
def test_a_state_of_another_structure_is_refused_by_name_of_the_leaf(
    compiled, make_task, checkpoints, tmp_path, change, message
):
    abstract = change(compiled.abstract_state)
    before = contents(tmp_path)
    saved = Checkpoints(checkpoints)
    for read in (
        lambda: saved.restore(abstract, iter(make_task().batches())),
        lambda: restore_state(checkpoints, abstract),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert message in str(caught.value)
    saved.close()
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_where_all_are_damaged_no_start_trains_over_the_metrics(make_task, tmp_path):
    run = RunDirectory(tmp_path / "run", {"experiment": "toy"})
    fit(make_task(), run, steps=20, log_every=5, checkpoint_every=10)
    for step in (10, 20):
        flip(largest(run.checkpoints / str(step)))
    metrics = (run.path / "metrics.jsonl").read_bytes()
    for _ in range(3):
        with pytest.raises(UserError) as caught:
            fit(make_task(), run, steps=40, log_every=5)
        assert str(caught.value) == (
            f"none of the checkpoints of {run.path} can be read (damaged: damaged-checkpoint-10, "
            "damaged-checkpoint-20); start again in another --workdir, or remove the whole "
            "directory to train from the beginning"
        )
        assert (run.path / "metrics.jsonl").read_bytes() == metrics
    for directory in run.path.glob("damaged-checkpoint-*"):
        shutil.rmtree(directory)
    assert fit(make_task(), run, steps=20, log_every=5).step == 20
