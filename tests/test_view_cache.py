"""The cache of teacher outputs by view: what it finds is right to the bit, and all else is a miss."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.errors import UserError
from kdbench.teaching.view_cache import ViewCache

SAMPLES, SIDES, FLIPS = 5, 3, 2
WIDTHS = {"logits": 7, "embed": 4}
"""Eleven values: with two bytes each the last word of a row is half used."""
KEY = {"teacher": "ab" * 32, "mean": (0.5, 0.25), "grid": {2: "two", 10: "ten"}}
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
ROWS = SAMPLES * SIDES * SIDES * FLIPS


class Rows(NamedTuple):
    where: Tensor
    view: Tensor
    values: dict[str, Tensor]

    def at(self, rows: Tensor | slice | list[int]) -> Rows:
        return Rows(self.where[rows], self.view[rows], {name: value[rows] for name, value in self.values.items()})


def opened(root: Path, key: dict[str, Any] = KEY, **changed: Any) -> ViewCache:
    geometry: dict[str, Any] = {"samples": SAMPLES, "pad": 1, "flip": True, "widths": WIDTHS, "dtype": torch.bfloat16}
    return ViewCache.open(root, key, **{**geometry, **changed})


def every_row(dtype: torch.dtype = torch.bfloat16, samples: int = SAMPLES, sides: int = SIDES) -> Rows:
    """Every view of every sample in the order of the rows, with any bits at all for values."""
    views = itertools.product(range(samples), range(sides), range(sides), range(FLIPS))
    where = torch.tensor(list(views))
    random = torch.Generator().manual_seed(0)
    values = {}
    for name, width in WIDTHS.items():
        info = torch.iinfo(BITS[dtype])
        drawn = torch.randint(info.min, info.max, (len(where), width), generator=random, dtype=BITS[dtype])
        values[name] = drawn.view(dtype)
    return Rows(where[:, 0], where[:, 1:], values)


def same(got: dict[str, Tensor], want: dict[str, Tensor], rows: Tensor) -> bool:
    """Whether `rows` are equal in every bit: as integers, since NaN is unlike itself."""
    return got.keys() == want.keys() and all(
        got[name].dtype == value.dtype
        and torch.equal(got[name][rows].view(BITS[value.dtype]), value[rows].view(BITS[value.dtype]))
        for name, value in want.items()
    )


def hits(cache: ViewCache, known: Rows) -> Tensor:
    """Which rows are hits, each of which must be right."""
    hit, got = cache.lookup(known.where, known.view)
    assert hit.shape == known.where.shape
    assert hit.dtype == torch.bool
    assert same(got, known.values, hit)
    return hit


@pytest.mark.parametrize("dtype", BITS)
def test_what_is_stored_is_found_to_the_bit_also_when_opened_again(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = every_row(dtype)
    specials = torch.tensor([float("nan"), -0.0, float("inf"), -float("inf"), torch.finfo(dtype).tiny / 2], dtype=dtype)
    payload = torch.tensor([0x7F81 if dtype == torch.bfloat16 else 0x7C01], dtype=torch.int16).view(torch.bfloat16)
    rows.values["logits"][3, :5] = specials
    if dtype != torch.float32:
        rows.values["logits"][4, :1] = payload.view(dtype)  # a signalling NaN
    cache = opened(tmp_path, dtype=dtype)
    assert cache.rebuilt is None
    assert not hits(cache, rows).any()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    first, last = order[:50], order[50:]
    cache.store(*rows.at(first))
    assert torch.equal(hits(cache, rows).nonzero().flatten(), first.sort().values)
    assert cache.filled() == 50
    again = opened(tmp_path, dtype=dtype)
    assert again.rebuilt is None
    again.store(*rows.at(last))
    assert hits(cache, rows).all()  # what another has written is seen
    assert cache.filled() == again.filled() == ROWS
    _, got = cache.lookup(rows.where, rows.view)
    for value in got.values():
        assert value.is_contiguous()  # kernels may round by strides: live values are so too
        value.zero_()  # the caller's own
    assert hits(cache, rows).all()


def test_rows_lie_in_the_order_of_sample_dy_dx_and_flip(tmp_path: Path) -> None:
    pad, sides, samples = 4, 9, 3
    cache = opened(tmp_path, pad=pad, samples=samples, widths={"logits": 2}, dtype=torch.float32)
    rows = every_row(torch.float32, samples, sides)
    number = torch.arange(len(rows.where))
    assert int((rows.where == 1).sum()) == 162
    values = torch.stack([number, 1000 - number], dim=1).float()
    order = torch.randperm(len(number), generator=torch.Generator().manual_seed(0))
    for part in order.split(64):
        cache.store(rows.where[part], rows.view[part], {"logits": values[part]})
    found = np.fromfile(cache.folder / "values.bin", np.float32).reshape(-1, 2)
    index, (dy, dx, flip) = rows.where.numpy(), rows.view.numpy().T
    assert np.array_equal(found[((index * 9 + dy) * 9 + dx) * 2 + flip], values.numpy())
    assert cache.filled() == len(np.unique(found[:, 0])) == samples * 162
    hit, got = cache.lookup(rows.where, rows.view)
    assert hit.all()
    assert torch.equal(got["logits"], values)


def test_without_augmentation_there_is_one_row_a_sample(tmp_path: Path) -> None:
    cache = opened(tmp_path, pad=0, flip=False)
    rows = every_row().at(slice(None, None, ROWS // SAMPLES))
    cache.store(*rows)
    assert hits(cache, rows).all()
    assert (cache.folder / "sums.bin").stat().st_size == SAMPLES * 4


def test_sizes(tmp_path: Path) -> None:
    # 11 values of 2 bytes are 22, in whole words 24, and 4 for the checksum; of 4 bytes they are 44
    assert opened(tmp_path).nbytes == ViewCache.size(SAMPLES, 1, True, WIDTHS, torch.bfloat16) == 90 * (24 + 4)
    assert ViewCache.size(SAMPLES, 1, False, WIDTHS, torch.float32) == 45 * (44 + 4)
    cifar = {"samples": 50_000, "pad": 4, "flip": True, "widths": {"logits": 100, "embed": 64}, "dtype": torch.float16}
    cache = ViewCache.open(tmp_path, {}, **cifar)  # type: ignore[arg-type]
    assert cache.nbytes == ViewCache.size(**cifar) == 8_100_000 * (328 + 4)  # type: ignore[arg-type]
    assert sum(path.stat().st_blocks * 512 for path in cache.folder.iterdir()) < 1e6  # sparse


@pytest.mark.parametrize(
    ("index", "view"),
    [(-1, (0, 0, 0)), (SAMPLES, (0, 0, 0)), (0, (3, 0, 0)), (0, (0, 3, 0)), (0, (0, -1, 0)), (0, (0, 0, 2))],
)
def test_views_that_do_not_exist_are_refused(tmp_path: Path, index: int, view: tuple[int, int, int]) -> None:
    cache = opened(tmp_path)
    where = torch.tensor([index]), torch.tensor([view])
    with pytest.raises(ValueError, match="invalid entry"):
        cache.lookup(*where)
    with pytest.raises(ValueError, match="invalid entry"):
        cache.store(*where, every_row().at([0]).values)
    assert cache.filled() == 0


def test_values_of_another_kind_are_refused(tmp_path: Path) -> None:
    cache, rows = opened(tmp_path), every_row()
    wide = {name: value.float() for name, value in rows.values.items()}
    for bad in (wide, {"logits": rows.values["logits"]}, {**rows.values, "embed": rows.values["embed"][:, :3]}):
        with pytest.raises(ValueError, match="the view cache holds"):
            cache.store(rows.where, rows.view, bad)
    assert cache.filled() == 0
    with pytest.raises(ValueError, match="float64"):
        opened(tmp_path, dtype=torch.float64)


def test_no_rows_at_all(tmp_path: Path) -> None:
    cache, none = opened(tmp_path), every_row().at(slice(0, 0))
    cache.store(*none)
    hit, got = cache.lookup(none.where, none.view)
    assert hit.shape == (0,)
    assert got["logits"].shape == (0, 7)


# Damage


@pytest.mark.parametrize(("name", "size"), [("values.bin", 24), ("sums.bin", 4)])
def test_every_flipped_bit_is_a_miss_and_is_mended(tmp_path: Path, name: str, size: int) -> None:
    cache, rows = opened(tmp_path), every_row()
    cache.store(*rows)
    flipped = np.fromfile(cache.folder / name, np.uint8)
    bits = size * 8
    for start in range(0, bits, ROWS):  # one bit in each row at a time, until each bit has had its turn in some row
        damaged = flipped.copy()
        turn = np.arange(ROWS)
        bit = (start + turn) % bits
        damaged[turn * size + bit // 8] ^= (1 << (bit % 8)).astype(np.uint8)
        _overwrite(cache.folder / name, damaged.tobytes())
        assert not hits(cache, rows).any()
        cache.store(*rows)
        assert hits(cache, rows).all()
    row = 31
    for one in range(bits):  # and all bits of one row
        damaged = flipped.copy()
        damaged[row * size + one // 8] ^= 1 << one % 8
        _overwrite(cache.folder / name, damaged.tobytes())
        assert torch.equal(hits(cache, rows), torch.arange(ROWS) != row)


def test_damage_of_many_bits_is_a_miss(tmp_path: Path) -> None:
    cache, rows = opened(tmp_path), every_row()
    cache.store(*rows)
    rng = np.random.default_rng(0)
    whole = np.fromfile(cache.folder / "values.bin", np.uint8).reshape(ROWS, -1)
    zeros, ones = np.zeros_like(whole), np.full_like(whole, 255)
    shifted, turned, halves = np.roll(whole, 1, axis=0), np.roll(whole, 4, axis=1), whole.copy()
    halves[:, 12:] = 0
    for damaged in (zeros, ones, shifted, turned, halves, whole ^ 1, whole ^ 128, ~whole):
        _overwrite(cache.folder / "values.bin", damaged.tobytes())
        assert not hits(cache, rows).any()
    for _ in range(50):
        noise = rng.integers(0, 256, whole.shape, np.uint8) & rng.integers(0, 256, whole.shape, np.uint8)
        _overwrite(cache.folder / "values.bin", (whole ^ noise).tobytes())
        assert not hits(cache, rows).any()
    _overwrite(cache.folder / "values.bin", whole.tobytes())
    assert hits(cache, rows).all()


@pytest.mark.parametrize("alike", [False, True], ids=["random values", "equal values"])
def test_a_row_at_the_place_of_another_is_a_miss_even_with_its_checksum(tmp_path: Path, alike: bool) -> None:
    cache, rows = opened(tmp_path), every_row()
    if alike:
        for value in rows.values.values():
            value[:] = value[0]
    cache.store(*rows)
    for step in (1, 2, 18, 45):
        for name in ("values.bin", "sums.bin"):
            whole = np.fromfile(cache.folder / name, np.uint8).reshape(ROWS, -1)
            _overwrite(cache.folder / name, np.roll(whole, step, axis=0).tobytes())
        assert not hits(cache, rows).any()
        cache.store(*rows)
    assert hits(cache, rows).all()


def test_rows_of_zeros_are_told_from_empty_ones(tmp_path: Path) -> None:
    cache, rows = opened(tmp_path), every_row()
    for value in rows.values.values():
        value.zero_()
    assert not hits(cache, rows).any()
    cache.store(*rows.at([0, 5]))
    assert hits(cache, rows).nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize("lost", ["values.bin", "sums.bin"])
def test_values_without_checksum_or_the_reverse_are_misses(tmp_path: Path, lost: str) -> None:
    """A power cut may keep either file's pages and lose the other's, whatever the order they were written in."""
    cache, rows = opened(tmp_path), every_row()
    cache.store(*rows.at(slice(0, 40)))
    size = (cache.folder / lost).stat().st_size
    _overwrite(cache.folder / lost, bytes(size))
    again = opened(tmp_path)
    assert again.rebuilt is None
    assert not hits(again, rows).any()
    again.store(*rows)
    assert hits(again, rows).all()


def test_a_crash_at_any_write_leaves_only_right_rows_or_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, scattered = every_row(), every_row().at(slice(0, ROWS, 7))
    write, most = os.pwrite, 2 * len(scattered.where)
    for crash in range(most):
        shutil.rmtree(tmp_path / "views", ignore_errors=True)
        cache = opened(tmp_path / "views")
        calls = itertools.count()

        def dies(fd: int, data: bytes, offset: int, calls: Any = calls, crash: int = crash) -> int:
            if next(calls) < crash:
                return write(fd, data, offset)
            write(fd, bytes(data)[: len(data) // 2], offset)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", dies)
            with pytest.raises(KeyboardInterrupt):
                cache.store(*scattered)
        again = opened(tmp_path / "views")
        assert again.rebuilt is None
        whole = max(crash - len(scattered.where), 0)  # values first, then checksums
        assert int(hits(again, rows).sum()) == whole
        assert again.filled() <= whole + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:5], offset))
        cache.store(*rows)  # a system that takes little at a time
    assert hits(cache, rows).all()


def _overwrite(path: Path, content: bytes) -> None:
    """In place: the cache has the file open."""
    with path.open("r+b") as file:
        file.write(content)


def _resized(path: Path, change: int) -> None:
    os.truncate(path, path.stat().st_size + change)


def _edited(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def _without_format(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content.pop("format") == 1
    path.write_text(json.dumps(content))


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("in the way")


DAMAGES: dict[str, tuple[Any, str]] = {
    "short values": (lambda f: _resized(f / "values.bin", -1), "values.bin has 2159 bytes instead of 2160"),
    "no values left": (lambda f: _resized(f / "values.bin", -2160), "values.bin has 0 bytes instead of 2160"),
    "long values": (lambda f: _resized(f / "values.bin", 24), "values.bin has 2184 bytes instead of 2160"),
    "short sums": (lambda f: _resized(f / "sums.bin", -4), "sums.bin has 356 bytes instead of 360"),
    "long sums": (lambda f: _resized(f / "sums.bin", 1), "sums.bin has 361 bytes instead of 360"),
    "no values.bin": (lambda f: (f / "values.bin").unlink(), "values.bin is missing"),
    "no sums.bin": (lambda f: (f / "sums.bin").unlink(), "sums.bin is missing"),
    "no meta.json": (lambda f: (f / "meta.json").unlink(), "meta.json is missing"),
    "empty meta": (lambda f: (f / "meta.json").write_text(""), "meta.json cannot be understood"),
    "binary meta": (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe\x00"), "meta.json cannot be understood"),
    "deep meta": (lambda f: (f / "meta.json").write_text("[" * 200_000), "meta.json cannot be understood"),
    "a list": (lambda f: (f / "meta.json").write_text("[1]"), "meta.json tells of another cache or format"),
    "old format": (lambda f: _edited(f / "meta.json", format=0), "meta.json tells of another cache or format"),
    "no format": (lambda f: _without_format(f / "meta.json"), "meta.json tells of another cache or format"),
    "other dtype": (lambda f: _edited(f / "meta.json", dtype="float16"), "meta.json tells of another cache or format"),
    "other key": (lambda f: _edited(f / "meta.json", key={}), "meta.json tells of another cache or format"),
    "meta a folder": (lambda f: _a_folder(f / "meta.json"), "meta.json cannot be read (Is a directory)"),
    "values a folder": (lambda f: _a_folder(f / "values.bin"), "values.bin is not a file"),
    "empty folder": (_emptied, "meta.json is missing"),
    "a file": (_a_file, "meta.json cannot be read (Not a directory)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_folder_is_begun_anew_and_says_why(tmp_path: Path, damage: str) -> None:
    break_it, reason = DAMAGES[damage]
    rows = every_row()
    folder = opened(tmp_path).folder
    opened(tmp_path).store(*rows)
    break_it(folder)
    cache = opened(tmp_path)
    assert cache.rebuilt == reason
    assert cache.folder == folder
    assert cache.filled() == 0
    assert not hits(cache, rows).any()
    cache.store(*rows)
    again = opened(tmp_path)
    assert again.rebuilt is None
    assert hits(again, rows).all()


def test_who_has_the_old_files_open_goes_on_with_them(tmp_path: Path) -> None:
    rows = every_row()
    old = opened(tmp_path)
    old.store(*rows.at(slice(0, 45)))
    (old.folder / "meta.json").unlink()
    new = opened(tmp_path)
    assert new.filled() == 0
    old.store(*rows)
    assert hits(old, rows).all()
    assert not hits(new, rows).any()


def test_values_cut_off_while_open_are_misses(tmp_path: Path) -> None:
    cache, rows = opened(tmp_path), every_row()
    cache.store(*rows)
    os.truncate(cache.folder / "values.bin", 45 * 24 + 10)
    assert hits(cache, rows).nonzero().flatten().tolist() == list(range(45))
    cache.store(*rows)
    assert hits(cache, rows).all()


# Keys


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    rows = every_row()
    first = opened(tmp_path)
    first.store(*rows)
    others = [
        opened(tmp_path, {**KEY, "teacher": "cd" * 32}),
        opened(tmp_path, {**KEY, "torch": "2.6"}),
        opened(tmp_path, samples=SAMPLES + 1),
        opened(tmp_path, pad=2),
        opened(tmp_path, flip=False),
        opened(tmp_path, dtype=torch.float16),
        opened(tmp_path, widths={"logits": 4, "embed": 7}),
    ]
    assert len({cache.folder for cache in (first, *others)}) == 1 + len(others)
    for other in others[:2]:
        assert not hits(other, rows).any()
    twins = [opened(tmp_path, dict(reversed(KEY.items()))), opened(tmp_path, widths=dict(reversed(WIDTHS.items())))]
    for twin in twins:
        assert (twin.folder, twin.rebuilt) == (first.folder, None)
        assert hits(twin, rows).all()


# Several processes

CHILD = """
import os, sys, time
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_view_cache import every_row, opened

torch.set_num_threads(1)
root, seed, forever = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "forever"
rows = every_row()
random = torch.Generator().manual_seed(seed)
print("ready", flush=True)
while not (root / "go").exists():
    time.sleep(0.001)
cache = opened(root)
assert cache.rebuilt is None, cache.rebuilt
while True:
    for part in torch.randperm(len(rows.where), generator=random).split(16):
        hit, got = cache.lookup(rows.where[part], rows.view[part])
        for name, value in got.items():
            right = rows.values[name][part][hit].view(torch.int16)
            assert torch.equal(value[hit].view(torch.int16), right)
        cache.store(*rows.at(part if forever else part[~hit]))
    if not forever:
        break
"""


def _child(root: Path, seed: int, mode: str) -> subprocess.Popen[str]:
    script = CHILD.format(tests=str(Path(__file__).parent))
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(seed), mode], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child


def test_two_processes_fill_it_at_the_same_time_and_one_is_killed(tmp_path: Path) -> None:
    rows = every_row()
    together, killed = tmp_path / "together", tmp_path / "killed"
    together.mkdir()
    killed.mkdir()
    children = [_child(together, 1, "once"), _child(together, 2, "once"), _child(killed, 3, "forever")]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    (together / "go").touch()
    for child in children[:2]:
        assert child.wait(timeout=30) == 0
    cache = opened(together)
    assert cache.rebuilt is None
    assert cache.filled() == ROWS
    assert hits(cache, rows).all()

    (killed / "go").touch()
    reader = opened(killed)
    deadline = time.monotonic() + 20
    while not reader.filled() and time.monotonic() < deadline:
        hits(reader, rows)  # while it writes
    children[2].kill()
    assert children[2].wait() == -9
    again = opened(killed)
    assert again.rebuilt is None
    assert hits(again, rows).any()
    again.store(*rows)
    assert hits(again, rows).all()
    for child in children:
        assert child.stdout is not None
        child.stdout.close()


# Disks


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*file/views .*choose another folder"):
        opened(tmp_path / "file" / "views")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_told_in_a_sentence(tmp_path: Path) -> None:
    folder = opened(tmp_path / "views").folder
    (folder / "values.bin").chmod(0o444)
    with pytest.raises(UserError, match="choose a folder that you may write to"):
        opened(tmp_path / "views")
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UserError, match="choose a folder that you may write to"):
        opened(tmp_path / "closed" / "views")


def test_a_full_disk_is_told_in_a_sentence_and_costs_no_row(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the system refuses a write in the same way."""
    rows = every_row()
    cache = opened(tmp_path)
    cache.store(*rows.at([0, 1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 60 + 7, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write to .* free some space there"):
            cache.store(*rows)
        with pytest.raises(UserError, match=r"Cannot write to .* free some space there"):
            opened(tmp_path, {"another": "cache"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hits(cache, rows).nonzero().flatten().tolist() == [0, 1]
    cache.store(*rows)
    assert hits(cache, rows).all()
    assert opened(tmp_path, {"another": "cache"}).rebuilt is not None  # what was begun there is not trusted


def test_too_little_room_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = opened(tmp_path, samples=100_000)  # 1.8 million rows of 28 bytes: 50.4 MB
    free = 50_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=r"may take 0\.05 GB more .* 0\.05 GB are free.*KDBENCH_CACHE"):
        big.check_room(1_800_000)
    big.check_room(1000)  # at most two blocks each: 8 MB
    free = 51_000_000
    big.check_room(1_800_000)
