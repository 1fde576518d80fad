"""Files of torch.save without torch: the same bits, and no harm from any file."""

import io
import os
import pickle
import random
import re
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from flaxcnn.errors import FlaxcnnError
from flaxcnn.weights.pth import read_pth
from tests.paths import REAL_DATA

MAGIC = 0x1950A86A20F9469CFC6C
FORMATS = ["zip", "legacy"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def write_zip(path, program, storages=None, **entries):
    """A file of today's format, from the bytes of its pickle and its storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in {**(storages or {}), **entries}.items():
            folder = "archive" if key in entries else "archive/data"
            archive.writestr(f"{folder}/{key}", data)
    return path


def write_legacy(path, program, storages=None):
    """A file of the format before torch 1.6; storages are of 4 bytes a number."""
    storages = storages or {}
    header = [MAGIC, 1001, {"little_endian": True}]
    with open(path, "wb") as file:
        for item in header:
            file.write(pickle.dumps(item, 2))
        file.write(program + pickle.dumps(list(storages), 2))
        for data in storages.values():
            file.write((len(data) // 4).to_bytes(8, "little") + data)
    return path


WRITE = {"zip": write_zip, "legacy": write_legacy}


def code(value):
    """The opcodes that push a value."""
    return pickle.dumps(value, 2)[2:-1]


def storage(length, key="0", kind="FloatStorage"):
    head = b"(" + code("storage") + b"ctorch\n" + kind.encode() + b"\n"
    return head + code(key) + code("cpu") + code(length) + b"tQ"


def tensor(of, offset=0, size=(4,), strides=(1,)):
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(" + of
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return head + code(offset) + code(size) + code(strides) + hooks + b"tR"


def program(opcodes):
    return b"\x80\x02" + opcodes + b"."


def refusal(path):
    """The message that a file is refused with: one line, which names the file."""
    with pytest.raises(FlaxcnnError) as error:
        read_pth(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# What torch writes.


def assert_same(ours, theirs):
    """Equal in structure, types and bits."""
    torch = pytest.importorskip("torch")
    if isinstance(theirs, torch.Tensor):
        assert f"torch.{ours.dtype}" == str(theirs.dtype)
        assert ours.shape == tuple(theirs.shape)
        flat = theirs.detach().reshape(-1).contiguous().view(torch.uint8)
        assert ours.tobytes() == flat.numpy().tobytes()
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(theirs, type(ours))
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def checkpoint(torch):
    """Of every type and kind of tensor, and all else that checkpoints hold."""
    torch.manual_seed(0)
    base = torch.randn(6, 5, 4)
    types = ["bool", "uint8", "int8", "int16", "int32", "int64"]
    types += ["float16", "bfloat16", "float32", "float64"]
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return {
        "types": {t: (base * 9).to(getattr(torch, t)) for t in types},
        "special": torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45]),
        "views": [base, base[1:3], base.transpose(0, 2), base[:, ::2, 3], base[4, 2:]],
        "scalar": torch.tensor(3.5),
        "empty": [torch.empty(0), torch.empty(2, 0, 3), torch.empty(0).bfloat16()],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "state_dict": model.state_dict(),  # an OrderedDict with _metadata
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1).state_dict(),
        "size": base.shape,
        "numbers": [0, -1, 255, 65536, -(2**31), 2**40, 10**30, 0.1, True, False, None],
        "words": ("", "é", "x" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "containers": [[], {}, {1: {"a": [None]}}, [1] * 2000, {2.5: 1}],
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_writes_and_we_read(path, zipped, protocol):
    torch = pytest.importorskip("torch")
    saved = checkpoint(torch)
    torch.save(
        saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    ours = read_pth(path)
    assert_same(ours, saved)
    if protocol == 2:
        assert_same(ours, torch.load(path, weights_only=True))
    base, *views = ours["views"]
    assert all(np.shares_memory(base, view) for view in views)


def test_what_checkpoints_hold_beside_the_weights_passes(path):
    """As much of it as torch itself reads with weights_only."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    beside = {
        "schedule": schedule.state_dict(),  # a Counter
        "device": torch.device("cpu"), "dtype": torch.float16, "set": {1, 2},
        "bytes": b"ab", "bytearray": bytearray(b"ab"),
    }  # fmt: skip
    torch.save({"state_dict": net.state_dict(), **beside}, path)
    assert torch.load(path, weights_only=True)["set"] == {1, 2}
    assert_same(read_pth(path)["state_dict"], dict(net.state_dict()))


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "squeezenet1_1_caffe.pth"])
def test_published_files(name):
    torch = pytest.importorskip("torch")
    file = REAL_DATA / "weights" / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    assert_same(read_pth(file), torch.load(file, "cpu", weights_only=True))


@pytest.mark.parametrize("form", FORMATS)
def test_no_torch_needed(path, form):
    data = np.arange(6, dtype="<f4")
    opcodes = tensor(storage(6), offset=1, size=(2, 2), strides=(1, 3))
    WRITE[form](path, program(opcodes), {"0": data.tobytes()})
    np.testing.assert_array_equal(read_pth(path), [[1, 4], [2, 5]])


def test_python_2_wrote_strings_and_ordered_dicts_otherwise(path):
    pairs = b"](](U\x01bK\x01e](U\x01aK\x02ee"
    opcodes = b"ccollections\nOrderedDict\n" + pairs + b"\x85R"
    read = read_pth(write_legacy(path, program(opcodes)))
    assert list(read.items()) == [("b", 1), ("a", 2)]


# What asks to be run.


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("function", [os.system, exec, eval])
def test_nothing_is_run(path, tmp_path, form, protocol, function):
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            line = f"touch {marker}"
            source = line if function is os.system else f"open({str(marker)!r}, 'w')"
            return function, (source,)

    WRITE[form](path, pickle.dumps({"weight": Evil()}, protocol))
    message = refusal(path)
    assert not marker.exists()
    if protocol:  # 0 is refused for its opcodes
        module = "(posix|builtins|__builtin__)"  # the last by protocol 2
        assert re.search(
            rf"run '{module}.{function.__name__}', as .*: refused", message
        )
        assert "torch.save(model.state_dict(), ...)" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_model(path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "'torch.nn.modules.linear.Linear', as a whole pickled model" in message


def test_functions_as_values_are_only_those_of_the_list(path):
    opcodes = b"ctorch\nFloatStorage\n)R"  # a type of numbers is no function
    assert "REDUCE" in refusal(write_zip(path, program(opcodes)))


# What is not as torch writes it.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a file of torch.save"),
        (b"weights\n", "not a file of torch.save"),
        (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "a web page"),
        (pickle.dumps({"a": 1}), "not a file of torch.save"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (pickle.dumps(MAGIC, 2), "truncated or damaged"),
    ],
)
def test_other_files(path, content, reason):
    path.write_bytes(content)
    assert reason in refusal(path)


def test_no_file(path, tmp_path):
    assert f"no file {path};" in refusal(path)
    assert f"no file {tmp_path};" in refusal(tmp_path)


def test_other_archives(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    assert "not a file of torch.save" in refusal(path)
    zipfile.ZipFile(path, "w").close()
    assert "not a file of torch.save" in refusal(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "tar format of torch 0.1; load and save it" in refusal(path)


def test_big_endian(path):
    assert "little-endian" in refusal(write_zip(path, program(b"N"), byteorder="big"))
    write_zip(path, program(b"N"), byteorder="little")
    assert read_pth(path) is None


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("_", "opcodes"),
    {
        "stride 0": tensor(storage(4), size=(1 << 40,), strides=(0,)),
        "stride 0, small": tensor(storage(4), size=(5,), strides=(0,)),
        "offset": tensor(storage(4), offset=1),
        "far offset": tensor(storage(4), offset=1 << 62, size=(1,)),
        "negative offset": tensor(storage(4), offset=-1),
        "negative stride": tensor(storage(4), offset=3, strides=(-1,)),
        "negative size": tensor(storage(4), size=(-1,)),
        "stride": tensor(storage(4), size=(3,), strides=(2,)),
        "overflow": tensor(storage(4), size=(2, 2), strides=(1 << 62, 1 << 62)),
        "overflow to 0": tensor(storage(8), size=(5,), strides=(1 << 62,)),
        "wide": tensor(storage(4), size=(1,), strides=(1 << 70,)),
        "empty but large": tensor(storage(4), size=(0, 1 << 70), strides=(1, 1)),
        "ranks": tensor(storage(4), size=(2, 2), strides=(1,)),
        "rank": tensor(storage(4), size=(1,) * 65, strides=(1,) * 65),
        "many dimensions": tensor(storage(4), size=(2,) * 9999, strides=(0,) * 9999),
        "float size": tensor(storage(4), size=(4.0,)),
        "size of text": tensor(storage(4), size="4"),
        "size of None": tensor(storage(4), size=None),
        "no storage": tensor(code("0")),
        "storage of storage": tensor(tensor(storage(4), size=()), size=()),
        "other key": tensor(storage(4, key="1")),
        "outside": tensor(storage(4, key="../data.pkl")),
        "longer": tensor(storage(5)),
        "enormous": tensor(storage(1 << 60)),
        "negative length": tensor(storage(-1)),
        "whole": tensor(storage(4)) + tensor(storage(4, kind="IntStorage")) + b"\x86",
        "no arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        "no tuple": b"ctorch._utils\n_rebuild_tensor_v2\nNR",
        "not a storage's id": b"NQ",
        "an id of text": code("storage") + b"Q",
        "no mark": b"t",
        "no value": b"R",
        "no dict": b"NK\x01K\x02s",
        "no list": b"}K\x01a",
        "odd": b"}(K\x01u",
        "unhashable key": b"}]K\x01s",
        "deep key": b"})" + b"\x85" * 300_000 + b"Ns",
        "no memo": b"h\x05",
        "empty memo": b"q\x05",
        "deep": b"(" * 100_000,
        "opcode": b"N0",
        "unknown opcode": b"\xff",
        "text": b"X\x02\0\0\0\xff\xff",
        "long text": b"X\xff\xff\xff\xffa",
        "longer text": b"\x8d" + b"\xff" * 7 + b"\x7fa",
        "pairs": b"ccollections\nOrderedDict\n" + code([["a", 1, 2]]) + b"\x85R",
        "text for pairs": b"ccollections\nOrderedDict\n" + code("ab") + b"\x85R",
        "long name": b"c" + b"a" * 9999 + b"\n\xc3\xa9\n",
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed(path, form, _, opcodes):
    WRITE[form](path, program(opcodes), {"0": bytes(16)})
    assert len(refusal(path)) < 400 + len(str(path))


def test_memo_is_no_array(path):
    opcodes = b"K\x07r\xff\xff\xff\xffj\xff\xff\xff\xff\x86"  # index 2**32 - 1
    assert peak(lambda: read_pth(write_zip(path, program(opcodes)))) < 1 << 20
    assert read_pth(path) == (7, 7)


def peak(function):
    """Bytes that a call holds at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_pickle_is_refused(path):
    write_zip(path, program(code("x" * (1 << 24)) + b"N\x86"))
    assert "a pickle of more than" in refusal(path)


def test_pairs_are_not_copied_often(path):
    """Each use of a list of pairs would be a dict of 4000."""
    pairs = code([[number, None] for number in range(4000)]) + b"r\0\1\0\0"
    again = b"ccollections\nOrderedDict\nj\0\1\0\0\x85R" * 2000
    opcodes = b"](" + pairs + again + b"e"
    write_zip(path, program(opcodes))
    assert peak(lambda: read_pth(path)) < 8 << 20


def test_compressed_bomb_is_not_inflated(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w") as entry,
    ):
        for _ in range(256):
            entry.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    assert peak(lambda: refusal(path)) < 1 << 20
    assert "compressed" in refusal(path)


def test_overlapping_entries(path):
    """Every storage is the same megabyte."""
    size, count = 1 << 20, 50
    opcodes = b"".join(tensor(storage(1, key=f"{i:02}"), size=()) for i in range(count))
    storages = {"00": bytes(size), **{f"{i:02}": b"" for i in range(1, count)}}
    write_zip(path, program(b"(" + opcodes + b"t"), storages)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/00")
        directory = archive.start_dir
    content = bytearray(path.read_bytes())
    record = content.index(b"PK\x01\x02", directory)
    while record >= 0:  # the directory's records begin with PK 1 2
        if content[record + 46 :].startswith(b"archive/data/"):
            content[record + 16 : record + 20] = first.CRC.to_bytes(4, "little")
            content[record + 20 : record + 28] = size.to_bytes(4, "little") * 2
            offset = first.header_offset.to_bytes(4, "little")
            content[record + 42 : record + 46] = offset
        record = content.find(b"PK\x01\x02", record + 46)
    path.write_bytes(content)
    assert "entries larger than the file" in refusal(path)


def test_lying_sizes(path):
    """An entry that claims 4 GB, in the directory and before its data."""
    write_zip(path, program(tensor(storage(4))), {"0": bytes(16)})
    sizes = (16).to_bytes(4, "little") * 2
    content = path.read_bytes()
    assert content.count(sizes) == 2
    path.write_bytes(content.replace(sizes, b"\xfe\xff\xff\xff" * 2))
    assert "entries larger than the file" in refusal(path)
    path.write_bytes(content.replace(sizes, sizes[:4] + b"\xfe\xff\xff\xff"))
    assert peak(lambda: refusal(path)) < 1 << 20


def test_legacy_storages_are_those_of_the_tensors(path):
    opcodes = program(tensor(storage(4)))
    for storages in ({}, {"0": bytes(16), "1": bytes(16)}, {"0": bytes(20)}):
        refusal(write_legacy(path, opcodes, storages))
    many = b"".join(storage(1 << 10, key=str(i)) for i in range(99))
    write_legacy(path, program(b"(" + many + b"t"))  # each fits, but not all of them
    assert "storages larger than the file" in refusal(path)


def small_file(path, form):
    """The content of a file of all that torch.save writes, without torch."""
    opcodes = b"}(" + code("w") + tensor(storage(4))
    opcodes += code("b") + tensor(storage(3, "1", "IntStorage"), 1, (2, 1), (1, 5))
    opcodes += code("m") + b"ccollections\nOrderedDict\n)R" + code("_metadata") + b"b"
    opcodes += code("n") + code([1, 2.5, None, True, 1 << 40, ("a", "b")]) + b"u"
    WRITE[form](path, program(opcodes), {"0": bytes(16), "1": bytes(range(12))})
    assert list(read_pth(path)) == ["w", "b", "m", "n"]
    return path.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_truncated(path, form):
    content = small_file(path, form)
    for cut in {*range(0, len(content), len(content) // 40), len(content) - 1}:
        path.write_bytes(content[:cut])
        refusal(path)


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files_of_torch(path, form):
    torch = pytest.importorskip("torch")
    torch.save(checkpoint(torch), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    for cut in {*range(0, len(content), len(content) // 30), len(content) - 1}:
        path.write_bytes(content[:cut])
        refusal(path)


def test_truncated_in_the_length_of_an_empty_storage(path):
    torch = pytest.importorskip("torch")
    torch.save({"empty": torch.empty(0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for missing in range(1, 9):
        path.write_bytes(content[:-missing])
        refusal(path)


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bytes_load_or_are_refused(path, form):
    content = small_file(path, form)
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 3])):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            read_pth(path)
        except FlaxcnnError:
            refused += 1
    assert 100 < refused < 600
