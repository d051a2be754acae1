"""The report's section on the terms of the loss."""

from ssd_lite.stages.pages.terms_section import terms


def step(number: int, kept: float) -> dict[str, float]:
    parts = {"support_compression": 0.2, "reshaping": 0.3, "alignment": 0.1, "target_entropy": 0.4}
    return {"step": number, "loss": 1.2, "kept": kept, **parts, "expected_loss": 1.0 + kept / 10}


def test_nothing_is_shown_where_no_law_was_kept() -> None:
    assert terms([]) == ""
    assert terms([{"step": 1, "loss": 1.0}]) == ""


def test_each_term_has_its_plot_and_the_ends_are_named() -> None:
    page = terms([step(1, 0.5), step(2, 0.6), step(3, 0.8)])
    assert page.count("<svg") == 4
    for name in ("Kept(S)", "support compression", "reshaping", "alignment"):
        assert name in page
    assert "from 1.050 to 1.080 nats; 0.400" in page
