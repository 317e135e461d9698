"""A sample is seeded, exact in size, and contains every smaller one."""

from hypothesis import given
from hypothesis import strategies as st

from facescan.run.selection import sample

IDS = [f"image-{number}" for number in range(500)]


def chosen(limit: int | None, seed: int = 0, ids: list[str] = IDS) -> set[str]:
    selection = sample(ids, limit, seed)
    return {one for one, taken in zip(ids, selection.taken(ids), strict=True) if taken}


@given(st.integers(1, 499), st.integers(1, 499))
def test_a_larger_limit_contains_a_smaller(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert len(chosen(small)) == small
    assert chosen(small) <= chosen(large)


def test_without_a_limit_or_with_a_large_one_all_are_taken() -> None:
    assert chosen(None) == chosen(1000) == set(IDS)


def test_the_sample_depends_on_the_seed_and_not_on_the_order() -> None:
    assert chosen(50, seed=0) != chosen(50, seed=1)
    assert chosen(50, ids=IDS[::-1]) == chosen(50)
