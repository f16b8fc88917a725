"""Parts: together they take every piece once, and none asks for a million pieces one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from voxstrata.store.claims import Claims
from voxstrata.store.files import Files
from voxstrata.store.part import Part, taken


@pytest.mark.parametrize(("pieces", "parts"), [(10, 1), (10, 3), (3, 5), (0, 2)])
def test_a_part_takes_its_own_pieces_first_and_each_piece_once(pieces: int, parts: int) -> None:
    order = list(range(100, 100 + pieces))
    for number in range(1, parts + 1):
        taken_by = list(Part(number, parts).order(order))
        own = order[number - 1 :: parts]
        assert taken_by[: len(own)] == own
        assert sorted(taken_by) == order


def test_parts_that_have_done_their_own_begin_with_different_pieces_of_others() -> None:
    first = [list(Part(number, 8).order(range(80)))[10] for number in range(1, 9)]
    assert len(set(first)) == 8
    assert all(piece >= 72 for piece in first)  # the last that their owners come to


def test_who_comes_late_asks_for_all_pieces_at_once(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    pending = {17, 90}

    def done(piece: int) -> bool:
        asked["one"] += 1
        return piece not in pending

    def left() -> set[int]:
        asked["all"] += 1
        return set(pending)

    with Claims(Files(tmp_path)) as claims:
        assert list(taken(range(100), claims, done, left)) == [17, 90]
    assert asked == {"one": 1 + 2 * 2, "all": 1}


def test_pieces_that_are_held_or_done_meanwhile_are_not_taken(tmp_path: Path) -> None:
    looks: Counter[int] = Counter()

    def done(piece: int) -> bool:
        looks[piece] += 1
        return piece == 2 and looks[2] == 2  # between the look and the claim

    with Claims(Files(tmp_path)) as others, Claims(Files(tmp_path)) as claims:
        assert others.take(1)
        assert list(taken([0, 1, 2, 3], claims, done)) == [0, 3]
        assert others.take(2)  # was let go of


def test_claims_of_an_object_store_are_seen_at_once() -> None:
    files = Files("memory://claims-that-are-seen")
    with Claims(files) as others, Claims(files) as claims:
        assert others.take(3)
        assert others.take(12)
        assert claims.held() == {3, 12}
        others.drop(3)
        assert list(taken([3, 12], claims, lambda _: False, lambda: {3, 12} - claims.held())) == [3]
