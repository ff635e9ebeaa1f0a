from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lungml.geometry import as_triple, irc_to_xyz
from tests.lungml.reading.browser.shown import (
    Show,
    blue_ring,
    box_corner,
    exported,
    kept,
    places,
    px_per_mm,
)
from tests.lungml.reading.page_readings import (
    GRID,
    compared_reading,
    finding_at,
    reading_with_truth,
    small_reading,
)

pytestmark = pytest.mark.slow


def test_a_lower_threshold_brings_a_filtered_one_back(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    assert "2 of 5 kept" in shown.page.locator("#counts").inner_text()
    shown.page.mouse.move(0, 0)
    shown.page.locator("#limit-0-nodule").focus()
    shown.press("PageDown", "ArrowDown")  # 0.39
    assert shown.luna("limits[0].nodule") == pytest.approx(0.39)
    assert kept(shown) == 3
    text = shown.page.locator("#counts").inner_text()
    assert "3 of 5 kept" in text
    assert "1 not asked" in text
    row = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert row["kind"] == "unasked"
    assert "malignancy not asked" in row["status"]
    shown.page.locator('[data-id="0:3"]').click()
    assert shown.luna("state.scan") == pytest.approx([18, 30, 60], abs=0.01)
    assert "not asked" in shown.page.locator("#detail").inner_text()
    shown.press("q")
    assert shown.luna("limits[0].nodule") == 0.5
    assert kept(shown) == 2


def test_a_click_ends_a_threshold_and_chooses_what_was_clicked(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#limit-0-nodule-number").fill("0.3")
    shown.page.mouse.move(*(sum(pair) for pair in zip((60, 20), box_corner(shown, '[data-id="0:2"]'))))
    shown.page.mouse.down()
    assert kept(shown) == 3
    shown.page.mouse.up()
    assert shown.luna("state.chosen") == "0:2"


def test_the_malignancy_slider_moves_between_benign_and_malignant(show: Show) -> None:
    shown = show(small_reading())
    assert [row["kind"] for row in shown.luna("rows")] == ["malignant", "benign"]
    shown.page.locator("#limit-0-malignant-number").fill("0.2")
    shown.press("Enter")
    assert [row["kind"] for row in shown.luna("rows")] == ["malignant", "malignant"]  # inclusive
    shown.page.locator("#limit-0-malignant-number").fill("0.81")
    shown.press("Enter")
    assert [row["kind"] for row in shown.luna("rows")] == ["benign", "benign"]


NEAR = (0.4999999, 0.5, 0.5000001, float(np.nextafter(0.5, 0)), float(np.nextafter(0.5, 1)), 0.0, 1.0, 1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.4999999, 0.0, 1.0, 0.3333333333333333, 1e-9])
def test_the_bundles_own_thresholds_give_the_stages_of_findings_csv(show: Show, threshold: float) -> None:
    reading = small_reading()
    point = places(reading)[0]
    values = sorted({*NEAR, threshold}, reverse=True)
    findings = []
    for nodule in values:
        for malignant in values:
            stage = "filtered" if nodule < threshold else "benign" if malignant < threshold else "malignant"
            found = finding_at(point, GRID, nodule=nodule)
            findings.append(
                replace(found, stage=stage, prob_malignant=np.nan if stage == "filtered" else malignant)  # type: ignore[arg-type]
            )
    opinion = replace(
        reading.opinions[0], findings=tuple(findings), nodule_threshold=threshold, malignant_threshold=threshold
    )
    shown = show(replace(reading, opinions=(opinion,)))
    shown.press("w")
    rows = {int(row["id"].split(":")[1]): row for row in shown.luna("rows")}
    assert [rows[n]["kind"] for n in range(1, len(findings) + 1)] == [finding.stage for finding in findings]
    counts = shown.luna("counts[0]")
    for stage in ("filtered", "benign", "malignant"):
        assert counts[stage] == sum(finding.stage == stage for finding in findings)
    for row in rows.values():  # no reason says of a number that it is below itself
        one, other = re.split(" < ", row["status"].rsplit("malignancy ", 1)[-1].rsplit("nodule ", 1)[-1] + " < -")[:2]
        assert one != other


@pytest.mark.parametrize(("threshold", "counts"), [("0", (5, 2, 0, 3)), ("1", (0, 0, 0, 0))], ids=["all", "none"])
def test_the_ends_of_the_thresholds(show: Show, threshold: str, counts: tuple[int, int, int, int]) -> None:
    shown = show(small_reading())
    for name in ("malignant", "nodule"):
        shown.page.locator(f"#limit-0-{name}-number").fill(threshold)
        shown.press("Enter")
    assert tuple(shown.luna("counts[0]")[key] for key in ("kept", "malignant", "benign", "unasked")) == counts


def test_the_u_net_slider_thins_mask_and_candidates(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("h", "x", "u")  # marks off, and on again with the mask
    point = places(reading)[0]
    beside = as_triple(np.add(point, (2.5, 0, 0)))
    shown.press("b", "m")
    veiled = shown.color("axial", beside)
    assert veiled[1] > veiled[0] + 10
    assert "2 of 5 kept" in shown.page.locator("#counts").inner_text()
    shown.page.locator("#limit-0-segmentation-number").fill("0.92")
    shown.press("Enter")
    plain = shown.color("axial", beside)
    assert max(plain) - min(plain) <= 2
    shown.press("w")  # all
    three = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert "nodule 0.40 < 0.50" in three["status"]
    shown.page.locator("#limit-0-nodule-number").fill("0.1")
    shown.press("Enter")
    three = next(row for row in shown.luna("rows") if row["id"] == "0:3")
    assert three["kind"] == "filtered"
    assert "U-Net 0.70 < 0.92" in three["status"]


def test_layers_are_switched_one_by_one(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("j", "x")  # 2, the benign one
    point = places(reading)[1]
    shown.page.mouse.click(*shown.screen("axial", as_triple(irc_to_xyz((6, 20, 20), GRID))))
    shown.press("k")  # another is chosen: the chosen one is always shown
    shown.page.locator("#stack").fill("6")
    radius = px_per_mm(shown, "axial", GRID) * 4
    assert blue_ring(shown, "axial", point, radius)
    shown.press("b")
    assert not blue_ring(shown, "axial", point, radius)
    assert shown.page.locator("#layer-kept").get_attribute("aria-pressed") == "false"
    shown.press("b")
    assert blue_ring(shown, "axial", point, radius)
    shown.press("h")
    assert not blue_ring(shown, "axial", point, radius)


def test_what_the_reader_said_of_a_filtered_one_stays_in_the_picture(show: Show) -> None:
    reading = small_reading()
    shown = show(reading)
    shown.press("w", "j", "j", "Shift+B", "k", "x", "c")  # 3 is filtered; candidates are hidden, another is chosen
    shown.page.locator("#stack").fill("18")
    assert blue_ring(shown, "axial", places(reading)[2], px_per_mm(shown, "axial", GRID) * 3)


def test_the_list_is_sorted_filtered_and_walked(show: Show) -> None:
    shown = show(small_reading())
    shown.page.locator("#show-all").click()
    assert [row["id"] for row in shown.luna("rows")] == [f"0:{n}" for n in range(1, 6)]
    shown.page.locator('[data-sort="diameter"]').click()
    assert [row["id"] for row in shown.luna("rows")] == ["0:1", "0:2", "0:3", "0:4", "0:5"]
    shown.page.locator('[data-sort="diameter"]').click()
    # What has no diameter stays last.
    assert [row["id"] for row in shown.luna("rows")] == ["0:4", "0:3", "0:2", "0:1", "0:5"]
    assert shown.page.locator('[role=columnheader][aria-sort="ascending"]').inner_text().startswith("\u2300")
    shown.press("/")
    shown.page.keyboard.type("filtered")
    assert [row["id"] for row in shown.luna("rows")] == ["0:4", "0:3", "0:5"]
    shown.press("Escape", "l", "Home")
    assert shown.luna("state.chosen") == "0:4"
    shown.press("ArrowDown", "ArrowDown")
    assert shown.luna("state.chosen") == "0:5"
    assert shown.luna("state.scan") == pytest.approx([20, 50, 40], abs=0.01)


def test_two_thousand_rows_make_no_two_thousand_nodes(show: Show) -> None:
    reading = small_reading()
    rng = np.random.default_rng(3)
    findings = [
        finding_at(as_triple(irc_to_xyz(rng.uniform((0, 0, 0), (23, 95, 79)), GRID)), GRID, 4.0, float(p), 0.1)
        for p in sorted(rng.uniform(0, 1, 2000), reverse=True)
    ]
    opinion = replace(reading.opinions[0], findings=tuple(findings))
    shown = show(replace(reading, opinions=(opinion,)))
    shown.press("w", "l", "End")
    assert shown.luna("state.chosen") == "0:2000"
    assert shown.page.locator("#rows .row").count() < 40
    assert shown.page.locator("#list").get_attribute("aria-rowcount") == "2001"
    assert shown.page.locator('[data-id="0:2000"]').is_visible()


# ---------------------------------------------------------------- compared, and with truth
def test_two_bundles_share_rows_where_they_agree_on_a_place(show: Show, tmp_path: Path) -> None:
    shown = show(compared_reading())
    shown.page.locator("#show-all").click()
    rows = {row["id"]: row["status"].split(" · ")[0] for row in shown.luna("rows")}
    assert rows == {"0:1": "both", "0:2": "both", "1:4": "only B", "0:3": "only B", "0:4": "neither", "0:5": "neither"}
    heads = shown.page.locator("#list-head").inner_text().split()
    assert [word for word in heads if word in ("A", "B")] == ["A", "A", "B", "B"]
    text = shown.page.locator("#counts").inner_text()
    assert "A: 2 of 5 kept" in text
    assert "B: 4 of 4 kept" in text
    assert "models:/luna/7" in shown.page.locator("#thresholds").inner_text()
    assert "phantoms" in shown.page.locator("#notices").inner_text()
    shown.page.locator("#limit-1-nodule-number").fill("0.65")
    shown.press("Enter")
    assert shown.luna("counts[0].kept") == 2
    assert shown.luna("counts[1].kept") == 2
    shown.page.locator('[data-id="1:4"]').click()
    shown.press("a")
    made = exported(shown, tmp_path, ask="r")["corrections"]
    assert [(c["bundle"], c["finding"]) for c in made] == [("models:/luna/7", 4)]


def test_the_graver_of_two_opinions_stands_for_a_row(show: Show) -> None:
    shown = show(compared_reading())
    row = next(row for row in shown.luna("rows") if row["id"] == "0:2")  # A 0.2, B 0.9
    assert (row["kind"], row["status"]) == ("malignant", "both \u00b7 benign by A, malignant by B")


def test_hits_misses_and_false_positives_follow_the_sliders(show: Show) -> None:
    reading = reading_with_truth()
    shown = show(reading)
    counts = shown.luna("counts[0]")
    assert (counts["hits"], counts["misses"], counts["falsePositives"]) == (1, 2, 1)
    missed = {row["id"]: row["status"] for row in shown.luna("rows") if row["kind"] == "missed"}
    assert "filtered out as 3: nodule 0.40 < 0.50" in missed["miss:1"]
    assert "never a candidate" in missed["miss:2"]
    tags = shown.page.locator("#rows .tag").all_inner_texts()
    assert sorted(tags) == ["FP", "hit"]
    nodule = reading.truth.nodules[1] if reading.truth else None
    assert nodule is not None
    shown.page.locator('[data-id="miss:1"]').click()
    shown.press("x")
    corner = px_per_mm(shown, "axial", GRID) * 3 + 4
    red, green, blue = shown.color("axial", nodule.center_xyz, right=corner, down=corner)
    assert min(red, green) > blue + 60  # yellow: missed

    shown.page.locator("#limit-0-nodule-number").fill("0.1")
    shown.press("Enter")
    counts = shown.luna("counts[0]")
    # 3 is a hit now; 4 lies in what is excluded and counts for nothing.
    assert (counts["kept"], counts["hits"], counts["misses"], counts["falsePositives"]) == (4, 2, 1, 1)
    red, green, blue = shown.color("axial", nodule.center_xyz, right=corner, down=corner)
    assert red > green + 40  # purple: found
    assert blue > green + 20


def test_a_nodule_that_both_bundles_miss_has_one_row(show: Show) -> None:
    shown = show(replace(compared_reading(), truth=reading_with_truth().truth))
    missed = {row["id"]: row["status"] for row in shown.luna("rows") if row["kind"] == "missed"}
    assert missed == {
        "miss:1": "benign nodule missed by A: filtered out as A3: nodule 0.40 < 0.50",
        "miss:2": "nodule missed by A and B: never a candidate",
    }
    shown.page.locator('[data-id="miss:2"]').click()
    assert shown.page.locator("#detail dd").all_inner_texts()[2:] == ["never a candidate"] * 2
