"""Numbers of an arm and the verdict over two arms, on hand-made samples and grades."""

import pytest

from ssd_lite.records import Grade, Problem, Sample, SamplingSettings
from ssd_lite.stages.evaluation.arm_report import arm_numbers, compare

SETTINGS = SamplingSettings(0.6, 20, 0.8, 0.0, 50)
PROBLEMS = [
    Problem(f"p{i}", ({"role": "user", "content": f"task {i}"},), difficulty=t)
    for i, t in enumerate(["easy", "easy", "hard", "hard"])
]


def sample(problem, index, text="```python\nx\n```", reason="stop", tokens=4):
    ids = tuple(range(tokens))
    return Sample(problem, index, (1,), ids, text, reason, 0.5, 0, SETTINGS, "hf", "hash")


def arm(passed, name, n=4):
    samples = [sample(p.id, i) for p in PROBLEMS for i in range(n)]
    grades = [
        Grade(p.id, i, "pass" if i < count else "wrong_answer")
        for p, count in zip(PROBLEMS, passed, strict=True)
        for i in range(n)
    ]
    numbers = arm_numbers(PROBLEMS, samples, grades, ks=[1, 2], seed=0, block="last")
    return {"arm": name, "k": [1, 2], "n": n, **numbers}


def test_pass_at_k_overall_and_by_tier():
    report = arm([4, 2, 1, 0], "base")
    assert report["pass_at_k"]["1"]["mean"] == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    # Unbiased pass@2 with 4 samples: 1 - C(4-c, 2) / C(4, 2).
    assert report["pass_at_k"]["2"]["mean"] == pytest.approx((1 + 5 / 6 + 1 / 2 + 0) / 4)
    assert report["by_difficulty"]["easy"]["count"] == 2
    assert report["by_difficulty"]["hard"]["pass_at_k"]["1"]["mean"] == pytest.approx(0.125)
    assert report["verdicts"] == {"wrong_answer": 9, "pass": 7}
    low, high = report["pass_at_k"]["1"]["low"], report["pass_at_k"]["1"]["high"]
    assert low < report["pass_at_k"]["1"]["mean"] < high


def test_rates_lengths_and_hedging_words():
    samples = [
        sample("p0", 0, "Wait, maybe this works", "length", tokens=10),
        sample("p0", 1, "```python\nopen", "stop", tokens=2),
        sample("p1", 0),
        sample("p1", 1),
    ]
    grades = [Grade("p0", 0, "no_code"), Grade("p0", 1, "error"), Grade("p1", 0, "pass"), Grade("p1", 1, "pass")]
    numbers = arm_numbers(PROBLEMS[:2], samples, grades, ks=[1], seed=0, block="last")
    assert numbers["no_code_rate"] == 0.25
    assert numbers["cap_rate"] == 0.25
    assert numbers["unclosed_rate"] == 0.25
    assert numbers["mean_tokens"] == 5.0
    assert numbers["lengths"] == [10, 2, 4, 4]
    words = 4 + 2 + 2 + 2  # "python" and one more word in each fenced sample
    assert numbers["hedging_per_1000_words"] == pytest.approx(1000 * 2 / words)


# The ten of arXiv 2603.24472, by hand: the report's figure is theirs only with all of them.
HEDGING = ["wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check"]
NOT_HEDGING = ["waiting", "waits", "mighty", "almighty", "unlikely", "likelyhood", "checked", "seem", "maybes"]


def hedging(text):
    numbers = arm_numbers(
        PROBLEMS[:1], [sample("p0", 0, text)], [Grade("p0", 0, "no_code")], ks=[1], seed=0, block="last"
    )
    return numbers["hedging_words"], numbers["hedging_per_1000_words"]


def test_all_ten_hedging_words_are_counted():
    assert hedging(" ".join(HEDGING)) == (dict.fromkeys(HEDGING, 1), 1000)
    for word in HEDGING:
        counts, per_thousand = hedging(f"{word.title()}, x. {word.upper()}! x-{word} x")
        assert counts == {**dict.fromkeys(HEDGING, 0), word: 3}
        assert per_thousand == pytest.approx(500)


def test_a_part_of_another_word_is_no_hedging_word():
    assert hedging(" ".join(NOT_HEDGING)) == (dict.fromkeys(HEDGING, 0), 0)


def test_a_gain_and_a_loss_are_claimed_only_beyond_the_interval():
    low, high = arm([0, 0, 0, 0], "base"), arm([4, 4, 4, 3], "tuned")
    gain = compare(low, high, seed=0)
    assert gain["verdict"] == "gain"
    assert gain["sentence"].startswith("Gain: pass@1 rose by 93.8 points")
    assert gain["only_tuned"] == 4
    assert gain["only_base"] == 0
    assert gain["mcnemar_p"] == pytest.approx(0.125)
    loss = compare(high, low | {"arm": "tuned"}, seed=0)
    assert loss["verdict"] == "loss"
    noise = compare(arm([4, 2, 1, 0], "base"), arm([3, 3, 0, 1], "tuned"), seed=0)
    assert noise["verdict"] == "no difference shown"
    assert noise["pass_at_k"]["1"]["low"] < 0 < noise["pass_at_k"]["1"]["high"]


def test_two_equal_arms_do_not_claim_the_power_to_show_nothing():
    same = compare(arm([2, 2, 1, 1], "base"), arm([2, 2, 1, 1], "tuned"), seed=0)
    assert same["verdict"] == "no difference shown"
    assert same["smallest_difference"]["1"] > 0.1


def once(passed, name):
    """An arm of one sample a problem."""
    rows = [{"problem_id": f"p{i}", "difficulty": None, "n": 1, "passed": c} for i, c in enumerate(passed)]
    return {"arm": name, "k": [1], "n": 1, "per_problem": rows}


def test_a_set_on_which_nobody_is_right_does_not_show_a_difference_of_zero():
    same = compare(once([0] * 59, "base"), once([0] * 59, "tuned"), seed=0)
    assert same["smallest_difference"]["1"] == pytest.approx(0.117, abs=0.001)
    assert same["sentence"].endswith("over 59 problems; the smallest difference this set could show is about 11.7.")


def test_pass_at_n_has_the_power_of_one_sample():
    """pass@5 of 5 samples is 0 or 1, whatever the rate: one draw a problem, as pass@1 of one sample."""
    rows = [{"problem_id": f"p{i}", "difficulty": None, "n": 5, "passed": 3 * (i < 20)} for i in range(59)]
    five = {"arm": "base", "k": [1, 5], "n": 5, "per_problem": rows}
    single = once([int(i < 20) for i in range(59)], "base")
    shown = compare(five, five, seed=0)["smallest_difference"]
    assert shown["5"] == compare(single, single, seed=0)["smallest_difference"]["1"]
    assert shown["1"] < shown["5"] / 2


def test_a_set_too_small_to_tell_says_so():
    tiny = compare(once([0, 0, 1], "base"), once([0, 0, 1], "tuned"), seed=0)
    assert tiny["smallest_difference"] == {"1": None}
    assert tiny["sentence"].endswith("over 3 problems; the set is too small to say what difference it could show.")


@pytest.mark.parametrize("flipped", [4, 6])
def test_where_mcnemar_and_the_interval_disagree_the_sentence_says_both(flipped):
    low, high = ([0] * flipped + [1] * 10 + [0] * (50 - flipped), [1] * (10 + flipped) + [0] * (50 - flipped))
    for a, b, verdict in ((low, high, "gain"), (high, low, "loss")):
        found = compare(once(a, "base"), once(b, "tuned"), seed=0)
        assert found["verdict"] == verdict
        said = "McNemar's exact test does not agree: no difference shown, p = 0.125 (solved by one arm alone: base "
        assert (said in found["sentence"]) is (flipped == 4)
        assert ("McNemar" in found["sentence"]) is (flipped == 4)


def test_with_several_samples_mcnemar_is_another_question():
    """It counts problems solved at least once, which may even go the other way: no contradiction of pass@1."""
    base, tuned = arm([4, 4, 0, 0], "base"), arm([4, 4, 0, 0], "tuned")
    rows = [{"problem_id": f"p{i}", "difficulty": None, "n": 4, "passed": 1} for i in range(8)]
    others = [{"problem_id": f"q{i}", "difficulty": None, "n": 4, "passed": 4} for i in range(3)]
    before = {**base, "per_problem": rows + [{**row, "passed": 2} for row in others]}
    after = {**tuned, "per_problem": [{**row, "passed": 0} for row in rows] + others}
    found = compare(before, after, seed=0)
    assert found["verdict"] == "no difference shown"
    assert found["mcnemar_p"] == pytest.approx(0.00781, abs=1e-5)
    assert "McNemar" not in found["sentence"]


def test_arms_over_other_problems_are_not_compared():
    tuned = arm([1, 1, 1, 1], "tuned")
    tuned["per_problem"] = tuned["per_problem"][:-1]
    with pytest.raises(ValueError, match="same problems"):
        compare(arm([1, 1, 1, 1], "base"), tuned, seed=0)
