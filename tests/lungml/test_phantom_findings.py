import numpy as np
import pytest

from lungml.metrics import roc_auc
from lungml.phantom_anatomy import draw_chest
from lungml.phantom_canvas import Canvas
from lungml.phantom_findings import LOOK_ALIKE_MM, TEXTURES, DrawnNodule, Findings, Traits, draw_traits


@pytest.fixture(scope="module")
def several() -> list[tuple[Canvas, Findings, tuple[DrawnNodule, ...]]]:
    found = []
    for seed in range(8):
        canvas = Canvas(np.random.default_rng(seed), (48, 96, 96), (1.25, 0.8, 0.8))
        findings = Findings(canvas, draw_chest(canvas))
        found.append((canvas, findings, findings.nodules(3, 4, 0.4)))
    return found


@pytest.fixture(scope="module")
def many() -> list[Traits]:
    rng = np.random.default_rng(0)
    return [draw_traits(rng) for _ in range(4000)]


def test_the_diameter_separates_malignant_nodules_about_as_well_as_in_luna16(many: list[Traits]) -> None:
    malignant = np.array([t.malignant for t in many])
    assert 0.85 <= roc_auc(malignant, [t.diameter_mm for t in many]) <= 0.92
    assert 0.30 <= malignant.mean() <= 0.37
    assert {t.texture for t in many} == set(TEXTURES)
    assert {t.texture for t in many if t.diameter_mm < 5} == {"solid"}
    assert all(3 <= t.diameter_mm <= 30 for t in many)


def test_shape_tells_more_than_size_but_not_all(many: list[Traits]) -> None:
    middling = [t for t in many if 8 <= t.diameter_mm <= 11]
    assert 0.75 < roc_auc([t.malignant for t in middling], [t.lobulation for t in middling]) < 0.97
    # Logarithm of the size plus bumps, weighed by hand: better than the size alone.
    both = [np.log(t.diameter_mm) + 3 * t.lobulation for t in many]
    malignant = [t.malignant for t in many]
    assert roc_auc(malignant, both) > roc_auc(malignant, [t.diameter_mm for t in many]) + 0.02


def test_ratings_agree_with_malignancy(many: list[Traits]) -> None:
    for traits in many:
        assert 1 <= len(traits.ratings) <= 4
        assert set(traits.ratings) <= {1, 2, 3, 4, 5}
        assert traits.malignant == (sum(rating >= 4 for rating in traits.ratings) >= 2)


def test_nodules_lie_in_the_lungs_or_on_the_pleura_and_apart(several: list) -> None:
    drawn = 0
    for canvas, findings, nodules in several:
        centers = np.array([n.center_irc for n in nodules])
        depths = findings.chest.depth_mm.at(centers)
        radii = np.array([n.diameter_mm for n in nodules]) / 2
        assert (depths > 0).all()
        assert (depths > 0.44 * radii).all()
        for n in range(len(nodules)):
            apart = np.linalg.norm((centers - centers[n]) * canvas.spacing, axis=1)
            assert (np.delete(apart - radii - radii[n], n) > 5.9).all()
        drawn += len(nodules)
    assert drawn >= 20


def test_the_hu_at_the_centre_is_the_textures(several: list) -> None:
    for canvas, _, nodules in several:
        for nodule in nodules:
            hu = canvas.hu[tuple(np.rint(nodule.center_irc).astype(int))]
            if nodule.texture == "ground-glass":
                assert hu > -720
            elif nodule.diameter_mm > 5:
                assert hu > -150
            else:  # thick slices and edges thin out the smallest
                assert hu > -450


def test_a_nodule_has_the_size_the_table_says() -> None:
    for seed in range(6):
        canvas = Canvas(np.random.default_rng(seed), (60, 60, 60), (1.0, 0.8, 0.8))
        findings = Findings(canvas, draw_chest(canvas))
        canvas.hu[:] = -860
        traits = Traits(diameter_mm=14.0, malignant=True, texture="solid", lobulation=0.2, spicules=0, ratings=(4, 5))
        findings._paint_nodule(canvas.size_mm / 2, traits)
        volume = (canvas.hu > -430).sum() * np.prod(canvas.spacing)
        assert 0.85 < (6 * volume / np.pi) ** (1 / 3) / 14.0 < 1.2


def test_look_alikes_and_specks_keep_away_from_nodules(several: list) -> None:
    for canvas, findings, nodules in several:
        specks = findings.specks()
        alike = findings.look_alikes(30 * len(nodules))
        assert len(alike) == 30 * len(nodules)
        assert ((alike > -0.5) & (alike < np.array(canvas.shape) - 0.5)).all()
        for nodule in nodules:
            for places in (specks, alike):
                apart = np.linalg.norm((places - nodule.center_irc) * canvas.spacing, axis=1)
                assert (apart > nodule.diameter_mm / 2 + LOOK_ALIKE_MM - 1e-6).all()
        assert 0 <= len(specks) <= 3
        assert all(r < 1.5 for r in findings.radii[len(nodules) :])  # below LUNA16's 3 mm


def test_most_look_alikes_lie_on_something(several: list) -> None:
    canvas, findings, _ = several[0]
    places = np.rint(findings.look_alikes(60)).astype(int)
    bright = [canvas.hu[tuple(slice(max(v - 1, 0), v + 2) for v in place)].max() > -500 for place in places]
    assert np.mean(bright) > 0.6
