"""Files of weights: what is read, and what is refused without being run."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from rml.errors import UserError
from rml.models.pretrained.files import read_file
from rml.models.pretrained.pickles import read_pickle
from tests.models.golden.families import CASES

WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)
EXPECTED = {
    "whole": (WHOLE, "F32"),
    "transposed": (WHOLE.T, "F32"),
    "part": (WHOLE[1:3, 2:5], "F32"),
    "number": (np.int64(7), "I64"),
    "half": (WHOLE[0], "BF16"),
    "parameter": (WHOLE[2], "F64"),
}


@pytest.mark.parametrize("name", ["checkpoint.pt", "older.pth"])
def test_checkpoints_of_pytorch(name):
    found = read_file(CASES / name)
    assert found.keys() == EXPECTED.keys()
    for key, (value, dtype) in EXPECTED.items():
        assert (found[key].shape, found[key].dtype) == (value.shape, dtype)
        np.testing.assert_array_equal(np.asarray(found[key].read(), np.float64), value)


@pytest.mark.parametrize("name", ["checkpoint.pt", "older.pth"])
def test_damaged_checkpoints(name, tmp_path):
    content = (CASES / name).read_bytes()
    for size in (0, 4, 60, len(content) // 2, len(content) - 40):
        with pytest.raises(UserError, match=f"{name} cannot be read as weights of PyTorch"):
            read_pickle(content[:size], name)


def test_npz_and_safetensors(tmp_path):
    arrays = {"a": WHOLE, "b": np.int8([1, 2])}
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    for ending in ("npz", "safetensors"):
        found = read_file(tmp_path / f"a.{ending}")
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            "a": ((4, 6), "F32"),
            "b": ((2,), "I8"),
        }
        np.testing.assert_array_equal(found["a"].read(), WHOLE)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def viewed(offset, shape, strides):
    """A pickled dictionary of one tensor, a view of the storage "0" of four numbers."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    view = storage + b"I%d\n" % offset + numbers(shape) + numbers(strides)
    return b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tRs."


def zipped(pickled, *, compression=zipfile.ZIP_STORED, order=b"little", stored=4):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", order)
        archive.writestr("a/data/0", np.arange(stored, dtype=np.float32).tobytes())
    return file.getvalue()


def test_views_are_read_within_their_storage_only(capsys):
    good = viewed(1, (2,), (2,))
    np.testing.assert_array_equal(read_pickle(zipped(good), "a.pt")["w"], [1, 3])
    for content, message in (
        (zipped(viewed(3, (2,), (1,))), r"a tensor \(2,\) lies outside its storage of 4"),
        (zipped(viewed(-1, (2,), (1,))), "lies outside"),
        (zipped(viewed(3, (2,), (-1,))), "lies outside"),
        (zipped(viewed(0, (10**12,), (0,))), "lies outside"),  # would fill the memory
        (zipped(good, stored=2), "lies outside its storage of 2"),
        (zipped(good, compression=zipfile.ZIP_DEFLATED), "a/data/0 is compressed"),
        (zipped(good, order=b"big"), "not little-endian"),
        (zipped(pickle.dumps({"w": Evil()}, protocol=2)), r"print, which is no tensor"),
        (zipped(pickle.dumps([1])), "it holds a list, expected tensors by name"),
        (zipped(pickle.dumps({"w": 1})), "its 'w' is a int, expected a tensor"),
        (b"PK\x03\x04 and no more", "cannot be read as weights of PyTorch"),
    ):
        with pytest.raises(UserError, match=message):
            read_pickle(content, "a.pt")
    assert capsys.readouterr().out == ""


def test_files_that_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], object))
    with pytest.raises(UserError, match=r"a.npz cannot be read as npz: .*allow_pickle"):
        read_file(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read as npz"):
        read_file(tmp_path / "a.npz")
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.ckpt does not end .* one of: \.safetensors, \.pt"):
        read_file(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="there is no file"):
        read_file(tmp_path / "b.pt")
