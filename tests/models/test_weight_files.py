"""Files of weights: what is read, and what is refused without being run."""

import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from rml.errors import UserError
from rml.models.pretrained.files import read_file
from rml.models.pretrained.pickles import MAGIC, read_pickle
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


def test_damaged_npz(tmp_path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, a=np.arange(10_000))
    whole = file.read_bytes()
    changes = [
        (whole.index(b"a.npy") + 100, 255, "(Error -3|Bad CRC)"),  # as zlib has packed it
        (whole.index(b"PK\1\2") + 8, 1, "encrypted"),
        (whole.index(b"PK\1\2") + 10, 99, "compression method is not supported"),
    ]
    for place, value, message in changes:
        damaged = bytearray(whole)
        damaged[place] ^= value
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a\.npz cannot be read as npz: .*{message}"):
            read_file(file)
    np.save(tmp_path / "b.npy", WHOLE)
    (tmp_path / "b.npy").rename(file)
    with pytest.raises(UserError, match="cannot be read as npz: it is no archive, as numpy"):
        read_file(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "words")
    with pytest.raises(UserError, match=r"cannot be read as npz: its 'notes\.txt' is no array"):
        read_file(file)
    for shape in ((10**17,), (10**30,)):  # which a header of 128 bytes may say
        with zipfile.ZipFile(file, "w") as archive, archive.open("a.npy", "w") as member:
            said = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, said)
        with pytest.raises(UserError, match=r"a\.npz cannot be read as npz: \w+"):
            read_file(file)


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


def zipped(pickled, *, compressed=None, order=b"little", stored=4):
    numbers = np.arange(stored, dtype=np.float32).tobytes()
    parts = {"a/data.pkl": pickled, "a/byteorder": order, "a/data/0": numbers}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            kind = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
            archive.writestr(name, content, kind)
    return file.getvalue()


def encrypted(content):
    """An archive whose directory says that its first file is encrypted."""
    at = content.index(b"PK\1\2") + 8
    return content[:at] + b"\1" + content[at + 1 :]


def test_views_are_read_within_their_storage_only(capsys):
    good = viewed(1, (2,), (2,))
    np.testing.assert_array_equal(read_pickle(zipped(good), "a.pt")["w"], [1, 3])
    for content, message in (
        (zipped(viewed(3, (2,), (1,))), r"a tensor \(2,\) lies outside its storage of 4"),
        (zipped(viewed(-1, (2,), (1,))), "lies outside"),
        (zipped(viewed(3, (2,), (-1,))), "lies outside"),
        (zipped(viewed(0, (10**12,), (0,))), "lies outside"),  # would fill the memory
        (zipped(good, stored=2), "lies outside its storage of 2"),
        (zipped(good, compressed="a/byteorder"), "a/byteorder is compressed"),
        (zipped(good, compressed="a/data.pkl"), "a/data.pkl is compressed"),
        (zipped(good, compressed="a/data/0"), "a/data/0 is compressed"),
        (zipped(good, order=b"big"), "not little-endian"),
        (zipped(pickle.dumps({"w": Evil()}, protocol=2)), r"print, which is no tensor"),
        (zipped(pickle.dumps([1])), "it holds a list, expected tensors by name"),
        (zipped(pickle.dumps({"w": 1})), "its 'w' is a int, expected a tensor"),
        (encrypted(zipped(good)), "encrypted, password required"),
        (b"PK\x03\x04 and no more", "cannot be read as weights of PyTorch"),
    ):
        with pytest.raises(UserError, match=message):
            read_pickle(content, "a.pt")
    assert capsys.readouterr().out == ""


def test_a_pickle_changes_nothing_for_later_ones():
    changed = b"(S'%b'\nctorch._utils\n_rebuild_parameter\nd\x86b."
    good = zipped(viewed(1, (2,), (2,)))
    nested = b"(dS'model'\n" + viewed(1, (2,), (2,))[:-1] + b"s."
    ordered = b"ccollections\nOrderedDict\n"
    for name in (b"items", b"get"):
        with pytest.raises(UserError, match="cannot be read as weights of PyTorch"):
            read_pickle(zipped(ordered + b"N" + changed % name), "evil.pt")
        whole = ordered + b")RS'w'\n" + viewed(1, (2,), (2,))[7:]
        for content in (good, zipped(nested), zipped(whole)):
            assert list(read_pickle(content, "a.pt")) == ["w"]


def test_a_small_pickle_takes_little_memory():
    long = (2**27).to_bytes(8, "little")
    tracemalloc.start()
    try:
        assert read_pickle(zipped(b"}r" + long[:4] + b"."), "a.pt") == {}  # a place in the memo
        for kind in (b"\x8e", b"\x8d", b"\x96"):  # bytes, a string and a bytearray
            with pytest.raises(UserError, match=r"a.pt cannot be read as weights of PyTorch: \w+"):
                read_pickle(zipped(kind + long + b"."), "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_the_older_form_with_more_than_weights():
    """The bytes of what is not read, such as an optimizer's, stand between those that are."""
    own = viewed(1, (2,), (2,))[:-1]
    other = own.replace(b"S'0'", b"S'1'").replace(b"Float", b"Double")
    state = b"(dS'optimizer'\n" + other + b"sS'model'\n" + own + b"s."
    stored = [np.arange(4, dtype=kind).tobytes() for kind in (np.float64, np.float32)]
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {})]
    parts += [state, pickle.dumps(["1", "0"], 2)]
    parts += [(4).to_bytes(8, "little") + numbers for numbers in stored]
    np.testing.assert_array_equal(read_pickle(b"".join(parts), "a.pth")["w"], [1, 3])


def test_files_that_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([Evil()], object))
    with pytest.raises(UserError, match=r"a.npz cannot be read as npz: .*allow_pickle"):
        read_file(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read as npz: it is no archive, as numpy"):
        read_file(tmp_path / "a.npz")
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.ckpt does not end .* one of: \.safetensors, \.pt"):
        read_file(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="there is no file"):
        read_file(tmp_path / "b.pt")
