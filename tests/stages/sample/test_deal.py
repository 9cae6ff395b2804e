from sparring.stages.sample.deal import dealt, response_seed

GOLDEN = [8, 3, 2, 7, 9, 4, 0, 5, 6, 1, 1, 5, 3, 7, 9, 0, 6, 4, 2, 8, 8, 1, 3]
SEEDS = [1657027567, 1279058421, 1441938448]


def test_golden() -> None:
    assert dealt(10, 0, 23, seed=0) == GOLDEN
    assert [response_seed(0, "abc", 0), response_seed(0, "abc", 1), response_seed(1, "abc", 0)] == SEEDS


def test_slices_of_a_deal_are_disjoint_and_cover_it() -> None:
    n, size = 103, 25
    slices = [dealt(n, start, size, seed=3) for start in range(0, 100, size)] + [dealt(n, 100, 3, seed=3)]
    assert sorted(row for rows in slices for row in rows) == list(range(n))
    assert dealt(n, 0, n, 3) != list(range(n))


def test_a_slice_over_the_end_goes_on_in_a_new_permutation() -> None:
    n = 7
    endless = dealt(n, 0, 4 * n, seed=1)
    assert dealt(n, 5, 12, seed=1) == endless[5:17]
    for deal in range(4):
        assert sorted(endless[deal * n : deal * n + n]) == list(range(n))
    assert endless[:n] != endless[n : 2 * n]


def test_seeds_are_in_range_and_differ() -> None:
    seeds = {response_seed(seed, str(i), deal) for seed in range(5) for i in range(200) for deal in range(2)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)
