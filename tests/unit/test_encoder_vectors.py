import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.encoder import vectors as vectors_module
from raysys.encoder.vectors import KEY, EmbeddingStore, key_column, keys_of
from raysys.errors import EncoderError, SnapshotError

DIM = 3


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def keys_for(*numbers: int) -> np.ndarray:
    return np.array([key(number) for number in numbers], dtype=KEY)


def vector(number: int) -> np.ndarray:
    return np.array([number, -number, 0.5], dtype=np.float32)


def write(store: EmbeddingStore, *numbers: int) -> Path:
    rows = np.array([vector(number) for number in numbers], dtype=np.float32).reshape(-1, DIM)
    return store.write([key(number) for number in numbers], rows)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path, "abc123", DIM)


def test_what_is_written_is_loaded_in_the_order_asked(store: EmbeddingStore) -> None:
    path = write(store, 1, 2, 3)
    write(store, 4)
    assert path.parent == store.folder
    assert store.holds(keys_for(4, 9, 1, 4, 0, 3)).tolist() == [True, False, True, True, False, True]
    loaded = store.load(keys_for(4, 1, 4, 3))
    np.testing.assert_array_equal(loaded, [vector(4), vector(1), vector(4), vector(3)])
    assert loaded.dtype == np.float32
    assert loaded.flags.c_contiguous
    assert loaded.flags.writeable


def test_an_empty_store_and_no_keys(store: EmbeddingStore) -> None:
    assert store.holds(keys_for(1)).tolist() == [False]
    assert store.load(keys_for()).shape == (0, DIM)
    write(store)
    assert store.holds(keys_for(1)).tolist() == [False]
    write(store, 1)
    assert store.holds(keys_for()).tolist() == []
    assert store.load(keys_for()).shape == (0, DIM)


def test_missing_vectors_are_counted(store: EmbeddingStore) -> None:
    write(store, 1, 2)
    with pytest.raises(SnapshotError, match="2 of 3 vectors are not in"):
        store.load(keys_for(1, 8, 9))


def test_the_same_key_in_two_files_is_fine(store: EmbeddingStore) -> None:
    write(store, 1, 2)
    write(store, 2, 3)
    np.testing.assert_array_equal(store.load(keys_for(3, 2)), [vector(3), vector(2)])


def test_stores_of_other_encoders_are_apart(store: EmbeddingStore, tmp_path: Path) -> None:
    write(store, 1)
    assert not EmbeddingStore(tmp_path, "other", DIM).holds(keys_for(1)).any()


def test_unfinished_and_foreign_files_are_left_out(store: EmbeddingStore, caplog: pytest.LogCaptureFixture) -> None:
    whole = write(store, 1).read_bytes()
    (store.folder / "half.tmp").write_bytes(whole[:50])
    (store.folder / "torn.parquet").write_bytes(whole[:-20])
    (store.folder / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"text_key": ["a"], "vector": ["b"]}), store.folder / "foreign.parquet")
    assert store.holds(keys_for(1, 2)).tolist() == [True, False]
    np.testing.assert_array_equal(store.load(keys_for(1)), [vector(1)])
    assert {"torn.parquet", "empty.parquet", "foreign.parquet"} <= set(caplog.text.replace("/", " ").split())


def test_a_failed_write_leaves_no_file_that_would_be_read(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(table: pa.Table, file: object, **how: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(vectors_module.pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(store, 1)
    assert list(store.folder.glob("*.parquet")) == []


@pytest.mark.parametrize("shape", [(1, DIM), (2, DIM + 1), (2,)])
def test_vectors_of_another_shape_are_refused(store: EmbeddingStore, shape: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match="2 vectors of 3 dimensions expected"):
        store.write([key(1), key(2)], np.zeros(shape, dtype=np.float32))


def test_row_groups_without_a_wanted_key_are_not_read(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "ROW_GROUP", 2)
    write(store, *range(10))
    read: list[tuple[int, list[str]]] = []
    original = pq.ParquetFile.read_row_group

    def spy(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.append((group, columns))
        return original(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    np.testing.assert_array_equal(store.load(keys_for(7, 2)), [vector(7), vector(2)])
    assert [group for group, columns in read if columns == ["vector"]] == [1, 3]


def test_files_are_plain_parquet_for_a_reader_without_us(store: EmbeddingStore) -> None:
    path = write(store, 1, 2)
    code = (
        "import sys, numpy as np, pyarrow.parquet as pq\n"
        f"table = pq.read_table({str(path)!r})\n"
        "assert not {'ray', 'raysys'} & set(sys.modules)\n"
        "print(table.schema.field('text_key').type, table.schema.field('vector').type)\n"
        "print(np.frombuffer(table['vector'][1].as_py(), dtype='<f4').tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == ["fixed_size_binary[32] fixed_size_binary[12]", "[2.0, -2.0, 0.5]"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4),
    group=st.integers(1, 5),
    data=st.data(),
)
def test_any_files_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    files: list[list[int]],
    group: int,
    data: st.DataObject,
) -> None:
    monkeypatch.setattr(vectors_module, "ROW_GROUP", group)
    store = EmbeddingStore(tmp_path_factory.mktemp("store"), "abc", DIM)
    for numbers in files:
        write(store, *numbers)
    known = sorted({number for numbers in files for number in numbers})
    assert store.holds(keys_for(*range(31), *known)).tolist() == [n in known for n in range(31)] + [True] * len(known)
    asked = data.draw(st.lists(st.sampled_from(known), max_size=20)) if known else []
    expected = np.array([vector(number) for number in asked], dtype=np.float32).reshape(-1, DIM)
    np.testing.assert_array_equal(store.load(keys_for(*asked)), expected)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stored=st.sets(st.binary(min_size=2, max_size=2), max_size=12),
    asked=st.lists(st.binary(min_size=2, max_size=2), max_size=20),
)
def test_keys_that_begin_alike_are_told_apart(
    tmp_path_factory: pytest.TempPathFactory, stored: set[bytes], asked: list[bytes]
) -> None:
    """The first 8 bytes are only looked at first: here they are the same in all, but for one bit."""
    store = EmbeddingStore(tmp_path_factory.mktemp("store"), "abc", DIM)

    def padded(key: bytes) -> bytes:
        return b"\0" * 7 + bytes([key[0] & 1]) + key + b"\0" * 22

    kept = sorted(map(padded, stored))
    store.write(kept, np.arange(len(kept) * DIM, dtype=np.float32).reshape(-1, DIM))
    wanted = [padded(key) for key in asked]
    assert store.holds(np.array(wanted, dtype=KEY)).tolist() == [key in kept for key in wanted]
    present = [key for key in wanted if key in kept]
    loaded = store.load(np.array(present, dtype=KEY))
    assert (loaded[:, 0] / DIM).tolist() == [kept.index(key) for key in present]


def test_a_column_of_keys_and_its_array_are_the_same_bytes() -> None:
    column = pa.chunked_array([key_column(keys_for(1, 2, 3))[1:], key_column(keys_for(4)), key_column(keys_for())])
    assert column.to_pylist() == [key(2), key(3), key(4)]
    assert keys_of(column).tolist() == [key(2), key(3), key(4)]
    assert keys_of(column.slice(1, 1)).tolist() == [key(3)]
    assert len(keys_of(pa.chunked_array([], pa.binary(32)))) == 0
