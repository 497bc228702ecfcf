"""Ways in which a folder of files can be wrong, each drawn from a generator.

A mutation is a function (generator, root, file) that changes `file`, or what stands in its place,
below `root`. Those of `BYTES` and `PLACES` fit any file; `mutations_of` adds those that know the
file's format and write a well-formed file with an odd value in it.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

Mutation = Callable[[np.random.Generator, Path, Path], None]

OUTSIDE = "outside"
"""A folder beside the one that is mutated, which nothing may write into."""

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1 << 31, -(1 << 63), 1 << 40, 10**30, 10**400),
    *(0.5, -1.5, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "0", "é\u202e\u0000\ud7ff😀", "x" * 5000, "../../outside/file", "/etc/passwd", "nan"),
    *([], {}, [1], {"a": 1}, [[[[[1]]]]], ["a", 2, None]),
)
"""Values of another type, size or script than any that is expected."""
DEEP = 20_000
"""Levels of nesting that end a recursive reader."""


def _rewrite(change: Callable[[np.random.Generator, bytearray], bytes | bytearray]) -> Mutation:
    def mutate(rng: np.random.Generator, root: Path, file: Path) -> None:
        file.write_bytes(change(rng, bytearray(file.read_bytes())))

    mutate.__name__ = change.__name__
    return mutate


def _place(rng: np.random.Generator, content: bytearray) -> int:
    return int(rng.integers(len(content))) if content else 0


def flip_a_bit(rng: np.random.Generator, content: bytearray) -> bytearray:
    if content:
        content[_place(rng, content)] ^= 1 << int(rng.integers(8))
    return content


def flip_a_bit_at_the_start(rng: np.random.Generator, content: bytearray) -> bytearray:
    if content:
        content[int(rng.integers(min(64, len(content))))] ^= 1 << int(rng.integers(8))
    return content


def randomise_a_run(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = _place(rng, content)
    content[start : start + 8] = rng.bytes(len(content[start : start + 8]))
    return content


def zero_a_run(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = _place(rng, content)
    content[start : start + 32] = bytes(len(content[start : start + 32]))
    return content


def fill_a_run(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = _place(rng, content)
    content[start : start + 8] = b"\xff" * len(content[start : start + 8])
    return content


def truncate(rng: np.random.Generator, content: bytearray) -> bytearray:
    return content[: _place(rng, content)]


def empty(rng: np.random.Generator, content: bytearray) -> bytes:
    return b""


def append(rng: np.random.Generator, content: bytearray) -> bytes:
    return bytes(content) + rng.bytes(int(rng.integers(1, 64)))


def insert(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = _place(rng, content)
    content[start:start] = rng.bytes(3)
    return content


def double(rng: np.random.Generator, content: bytearray) -> bytes:
    return bytes(content) * 2


BYTES: tuple[Mutation, ...] = tuple(
    map(
        _rewrite,
        (
            *(flip_a_bit, flip_a_bit, flip_a_bit_at_the_start, randomise_a_run, zero_a_run),
            *(fill_a_run, truncate, empty, append, insert, double),
        ),
    )
)
"""Changes of a file's bytes."""


def remove(rng: np.random.Generator, root: Path, file: Path) -> None:
    file.unlink()


def make_a_folder_of_it(rng: np.random.Generator, root: Path, file: Path) -> None:
    file.unlink()
    file.mkdir()


def link_to_zeros(rng: np.random.Generator, root: Path, file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")  # a reader without a bound would read it for ever


def swap_with_another(rng: np.random.Generator, root: Path, file: Path) -> None:
    others = sorted(path for path in root.rglob("*") if path.is_file() and path != file)
    other = _pick(rng, others) if others else file
    ours, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(ours)


def copy_from_another(rng: np.random.Generator, root: Path, file: Path) -> None:
    others = sorted(path for path in root.rglob(f"*{file.suffix}") if path.is_file())
    file.write_bytes(_pick(rng, others).read_bytes())


def link_out(rng: np.random.Generator, root: Path, file: Path) -> None:
    file.unlink()
    file.symlink_to(root.parent / OUTSIDE / "file")


def link_its_folder_out(rng: np.random.Generator, root: Path, file: Path) -> None:
    folder = file.parent
    if folder == root:
        return link_out(rng, root, file)
    shutil.rmtree(folder)
    folder.symlink_to(root.parent / OUTSIDE)
    return None


PLACES: tuple[Mutation, ...] = (
    *(remove, make_a_folder_of_it, link_to_zeros, swap_with_another, copy_from_another),
    *(link_out, link_its_folder_out),
)
"""Changes of what stands where a file is expected."""


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or mapping, key) of nested ones."""
    if isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            yield tree, key
            yield from _places(value)


def _pick(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def odd_tree(rng: np.random.Generator, tree: Any) -> Any:
    """A copy of nested lists and mappings, one place of which is odd, missing or misnamed."""
    tree, value = json.loads(json.dumps(tree)), _pick(rng, ODD)
    places = list(_places(tree))
    if not places or rng.integers(20) == 0:
        return value
    parent, key = _pick(rng, places)
    change = int(rng.integers(6))
    if change == 0:
        del parent[key]
    elif change == 1 and isinstance(parent, dict):
        parent[str(value)[:20]] = parent.pop(key)
    elif change == 2 and type(parent[key]) in (int, float):
        parent[key] = -parent[key]
    else:
        parent[key] = value
    return tree


def odd_json(rng: np.random.Generator, root: Path, file: Path) -> None:
    file.write_text(json.dumps(odd_tree(rng, json.loads(file.read_text()))))


def deep_json(rng: np.random.Generator, root: Path, file: Path) -> None:
    text = file.read_text()
    places = [i for i, character in enumerate(text) if character == ":"]
    if places:
        place = _pick(rng, places) + 1
        file.write_text(f'{text[:place]}{"[" * DEEP}{"]" * DEEP},"x":{text[place:]}')


def odd_yaml(rng: np.random.Generator, root: Path, file: Path) -> None:
    tree = odd_tree(rng, yaml.safe_load(file.read_text()))
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


YAML_BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
    + "agent: *i\n",
    "agent: &a\n  lr: *a\n",
    "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b}\n  <<: [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefgh"))
    + "agent:\n  <<: *h\n",
    f"agent: {'[' * DEEP}{']' * DEEP}\n",
    f"seed: {'9' * 5000}\n",
    "seed: 2001-99-99\n",
    "task: !!python/object/apply:os.system ['touch outside/bomb']\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "seed: 0b\n",
    "seed: !!int x\n",
    "seed: !!float x\n",
    "seed: !!timestamp x\n",
    "seed: !!binary x\n",
    "seed: !!set {a, b}\n",
    "seed: !!null\n",
    "--- 1\n--- 2\n",
    "\tx: 1\n",
    "seed: 190:20:30:99:99\n",
    "data: 1\ndata: 2\n",
    "%YAML 9.9\n---\nseed: 1\n",
    "é\u202e: 1\n",
)


def yaml_bomb(rng: np.random.Generator, root: Path, file: Path) -> None:
    bomb = _pick(rng, YAML_BOMBS)
    kept = file.read_text() if rng.integers(2) else ""
    file.write_text(kept + bomb)


def odd_csv(rng: np.random.Generator, root: Path, file: Path) -> None:
    rows = list(csv.reader(io.StringIO(file.read_text())))
    row = _pick(rng, rows)
    value = _pick(rng, ODD)
    action = int(rng.integers(5))
    place = int(rng.integers(len(row)))
    if action == 0:
        row.append(str(value)[:200_000])
    elif action == 1:
        row.pop(place)
    elif action == 2:
        row[place] = "9" * 200_000
    else:
        row[place] = str(value)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write_bytes(text.getvalue().encode(errors="replace"))


def odd_safetensors(rng: np.random.Generator, root: Path, file: Path) -> None:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    if rng.integers(6) == 0:
        odd = _pick(rng, ODD)
        size = odd if type(odd) is int and 0 <= odd < 1 << 64 else 1 << 62
        file.write_bytes(struct.pack("<Q", size) + content[8:])
        return
    header = json.dumps(odd_tree(rng, json.loads(content[8 : 8 + size]))).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def _members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write_members(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def odd_npy_header(rng: np.random.Generator, root: Path, file: Path) -> None:
    """A sound zip file, one array of which says of itself what it is not."""
    members = _members(file)
    name = _pick(rng, sorted(members))
    content = members[name]
    (size,) = struct.unpack("<H", content[8:10])
    header = content[10 : 10 + size].decode("latin1")
    shape = header[header.index("(") : header.index(")") + 1]
    shapes = (
        "(1000000000000,)",
        "(-5,)",
        "()",
        "(2, 3, 4)",
        f"({10**24},)",
        "(1e9,)",
    )
    descrs = ("'|O'", "'<f8'", "'<c16'", "'|S9'", "[('a', '<f4')]", "'<M8[s]'", "'x'")
    choice = int(rng.integers(4))
    if choice == 0:
        new = _pick(rng, shapes)
        header = header.replace(shape, new)
    elif choice == 1:
        rows = f"({1 << int(rng.integers(3, 40))},{shape[1:].partition(',')[2]}"
        header = header.replace(shape, rows)
    elif choice == 2:
        start = header.index("'descr': ") + 9
        end = header.index(", 'fortran")
        header = header[:start] + _pick(rng, descrs) + header[end:]
    else:
        header = header.replace("False", "True")
    coded = header.encode("latin1")
    members[name] = content[:8] + struct.pack("<H", len(coded)) + coded + content[10 + size :]
    _write_members(file, members)


def odd_npz_member(rng: np.random.Generator, root: Path, file: Path) -> None:
    """A sound zip file with an array less, with another's content, or with odd values in it."""
    members = _members(file)
    names = sorted(members)
    name = _pick(rng, names)
    choice = int(rng.integers(5))
    if choice == 0:
        del members[name]
    elif choice == 1:
        members[name] = members[_pick(rng, names)]
    elif choice == 2:
        members["../outside/escape.npy"] = members[name]
    else:
        array = np.load(io.BytesIO(members[name]))
        with np.errstate(all="ignore"):
            odd = np.array(_pick(rng, (np.nan, np.inf, -1, 2, 1e30))).astype(array.dtype)
        if array.size:
            array.reshape(-1)[int(rng.integers(array.size))] = odd
        text = io.BytesIO()
        np.save(text, array)
        members[name] = text.getvalue()
    _write_members(file, members)


BOMB_BYTES = 1 << 28


@lru_cache(maxsize=32)
def _bomb(start: bytes) -> tuple[bytes, int]:
    """`start` and so many zeros, deflated; and their CRC."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    zeros, pieces = bytes(1 << 24), [packer.compress(start)]
    crc = zlib.crc32(start)
    for _ in range(BOMB_BYTES >> 24):
        pieces.append(packer.compress(zeros))
        crc = zlib.crc32(zeros, crc)
    return b"".join([*pieces, packer.flush()]), crc


def zip_bomb(rng: np.random.Generator, root: Path, file: Path) -> None:
    """An array whose zeros take a quarter of a gigabyte, in a quarter of a megabyte of file."""
    members = _members(file)
    name = _pick(rng, sorted(members))
    content = members.pop(name)
    (size,) = struct.unpack("<H", content[8:10])
    header = content[10 : 10 + size].decode("latin1")
    if rng.integers(2):
        shape = header[header.index("(") : header.index(")") + 1]
        header = header.replace(shape, f"({BOMB_BYTES},)")
    start = content[:8] + struct.pack("<H", len(header)) + header.encode("latin1")
    _write_members(file, members)
    packed, crc = _bomb(start)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.compress_type, info.CRC = zipfile.ZIP_DEFLATED, crc
        info.file_size, info.compress_size = len(start) + BOMB_BYTES, len(packed)
        stream = archive.fp
        assert stream is not None
        stream.seek(archive.start_dir)
        info.header_offset = archive.start_dir
        stream.write(info.FileHeader() + packed)
        archive.start_dir = stream.tell()
        archive.filelist.append(info)
        archive.NameToInfo[name] = info
        archive._didModify = True


_ZEROS = zlib.compress(bytes(1 << 26), 1)


def odd_hdf5(rng: np.random.Generator, root: Path, file: Path) -> None:
    """A sound HDF5 file with one array of another shape, dtype, storage or value."""
    with h5py.File(file, "r+") as content:
        keys = sorted(key for key in content if isinstance(content[key], h5py.Dataset))
        key = _pick(rng, keys)
        old = content[key][()]
        del content[key]
        choice = int(rng.integers(9))
        if choice == 0:
            return
        if choice == 1:  # nothing of it is stored: it reads as zeros for ever
            shape = (1 << int(rng.integers(20, 45)), *old.shape[1:])
            content.create_dataset(key, shape, old.dtype, chunks=(1000, *old.shape[1:]))
        elif choice == 2:  # a chunk of 2 GiB, some of whose zeros are there
            rows = (1 << 28) // int(np.prod(old.shape[1:], dtype=int))
            array = content.create_dataset(
                key,
                old.shape,
                "f8",
                maxshape=(None, *old.shape[1:]),
                chunks=(rows, *old.shape[1:]),
                compression="gzip",
            )
            array.id.write_direct_chunk((0,) * old.ndim, _ZEROS)
        elif choice == 3:
            content[key] = h5py.ExternalLink(str(root.parent / OUTSIDE / "file.hdf5"), key)
        elif choice == 4:
            shape = (len(old), *old.shape[1:])
            external = [(str(root.parent / OUTSIDE / "file"), 0, h5py.h5f.UNLIMITED)]
            content.create_dataset(key, shape, old.dtype, external=external)
        elif choice == 5:
            content.create_dataset(key, data=["a"] * len(old))
        elif choice == 6:
            content.create_dataset(key, data=old[: len(old) // 2])
        elif choice == 7:
            wide = np.zeros((len(old), 3), old.dtype)
            content.create_dataset(key, data=wide)
        else:
            new = old.astype(np.float64)
            value = (np.nan, np.inf, 1e300, -1, 2)[int(rng.integers(5))]
            new.reshape(-1)[int(rng.integers(new.size))] = value
            content.create_dataset(key, data=new)


BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": (odd_json, odd_json, odd_json, odd_json, deep_json),
    ".yaml": (odd_yaml, odd_yaml, odd_yaml, odd_yaml, yaml_bomb),
    ".csv": (odd_csv, odd_csv),
    ".safetensors": (odd_safetensors, odd_safetensors),
    ".npz": (odd_npy_header, odd_npy_header, odd_npz_member, odd_npz_member, zip_bomb),
    ".hdf5": (odd_hdf5, odd_hdf5, odd_hdf5),
}
"""What else fits a file whose format is known."""


def mutations_of(file: Path) -> Sequence[Mutation]:
    """All mutations of a file; half of the draws know its format, where there are such."""
    known = BY_SUFFIX.get(file.suffix, ())
    general = (*BYTES, *PLACES)
    return (*general, *known * (-(-len(general) // len(known)) if known else 0))


def mutate(rng: np.random.Generator, root: Path) -> tuple[str, str]:
    """Change one file below `root`; its name below it, and how it was changed."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    file = _pick(rng, files)
    choices = mutations_of(file)
    mutation = _pick(rng, choices)
    mutation(rng, root, file)
    return file.relative_to(root).as_posix(), mutation.__name__
