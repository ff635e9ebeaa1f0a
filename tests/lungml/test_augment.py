import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from lungml.augment import (
    KNOT_VOX,
    Augmentation,
    augment_crops,
    augment_slabs,
    draw_affines,
    draw_displacements,
    report_classification,
    report_segmentation,
    resample_crops,
    resample_in_plane,
)

IMPOSSIBLE: list[dict] = [{"elastic_vox": -1}, {"elastic_vox": 3.1}, {"scale_hu": 1.0}, {"shift_hu": math.inf}]
GOLDEN = [300.71, 62.63, 285.75, 86.94]  # HU, with noise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(*shape: int) -> torch.Tensor:
    """A picture without symmetry, HU."""
    steps = [torch.linspace(0, 1 + axis, size) for axis, size in enumerate(shape)]
    return torch.stack(torch.meshgrid(*steps, indexing="ij")).sum(0).sin() * 900


def slabs_and_masks(batch: int = 4, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.zeros(batch, 1, side, side)
    masks[:, :, 10:18, 12:22] = 1
    return smooth(7, side, side).repeat(batch, 1, 1, 1) + 300 * masks, masks


def translation(axes: int, axis: int, half_sides: float) -> torch.Tensor:
    matrix = torch.eye(axes, axes + 1)
    matrix[axis, -1] = half_sides
    return matrix[None]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_known_shift_moves_a_picture_by_exactly_that_many_pixels(axis: int) -> None:
    picture = smooth(20, 20)[None, None]
    moved = resample_in_plane(picture, translation(2, axis, 2 * 3 / 20))
    dim = 3 - axis  # x is the column, the last dimension
    torch.testing.assert_close(moved.narrow(dim, 0, 17), picture.narrow(dim, 3, 17), atol=1e-2, rtol=0)
    border = picture.narrow(dim, 19, 1).expand_as(moved.narrow(dim, 17, 3))
    torch.testing.assert_close(moved.narrow(dim, 17, 3), border, atol=1e-2, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_known_shift_moves_a_crop_by_exactly_that_many_voxels(axis: int) -> None:
    crop = smooth(12, 20, 20)[None, None]
    dim = 4 - axis
    size = crop.shape[dim]
    moved = resample_crops(crop, translation(3, axis, 2 * 2 / size))
    torch.testing.assert_close(moved.narrow(dim, 0, size - 2), crop.narrow(dim, 2, size - 2), atol=1e-2, rtol=0)


@pytest.mark.parametrize("axes", [2, 3])
def test_the_shift_is_drawn_into_the_last_column(axes: int) -> None:
    # An earlier system wrote it into the last row, where it did nothing.
    matrices = draw_affines(Augmentation(shift=0.3), 200, axes, seeded())
    assert torch.equal(matrices[:, :, :axes], torch.eye(axes).expand(200, axes, axes))
    shifts = matrices[:, :, axes]
    assert (shifts.abs() <= 0.3).all()
    assert (shifts.amax(0) > 0.25).all()
    assert (shifts.amin(0) < -0.25).all()


def test_shifting_alone_moves_what_is_in_the_crop() -> None:
    crops = torch.zeros(8, 1, 16, 24, 24)
    crops[:, :, 6:10, 10:14, 10:14] = 1
    matrices = draw_affines(Augmentation(shift=0.2), 8, 3, seeded())
    moved = augment_crops(crops, Augmentation(shift=0.2), seeded())
    total = moved.sum((1, 2, 3, 4))
    for axis, size in enumerate((24, 24, 16)):
        others = [dim for dim in (1, 2, 3, 4) if dim != 4 - axis]
        center = (moved.sum(others) * torch.arange(size)).sum(1) / total
        expected = (size - 1) / 2 - matrices[:, axis, 3] * size / 2
        torch.testing.assert_close(center, expected, atol=1e-3, rtol=0)


def test_flips_scales_and_rotations_are_in_their_ranges() -> None:
    flips = draw_affines(Augmentation(flip=True), 400, 3, seeded())[:, :, :3].diagonal(dim1=1, dim2=2)
    assert torch.equal(flips.abs(), torch.ones(400, 3))
    assert ((flips < 0).float().mean(0) - 0.5).abs().max() < 0.1
    scales = draw_affines(Augmentation(scale=0.2), 400, 3, seeded())[:, :, :3].diagonal(dim1=1, dim2=2)
    assert scales.min() >= 0.8
    assert scales.max() <= 1.2
    assert scales.std(0).min() > 0.1
    turns = draw_affines(Augmentation(rotate=True), 400, 3, seeded())
    torch.testing.assert_close(turns[:, :, :3] @ turns[:, :, :3].mT, torch.eye(3).expand(400, 3, 3))
    assert torch.equal(turns[:, 2], torch.tensor([0.0, 0, 1, 0]).expand(400, 4))
    angles = torch.atan2(turns[:, 1, 0], turns[:, 0, 0])
    assert angles.min() < -0.9 * math.pi
    assert angles.max() > 0.9 * math.pi


def test_a_quarter_turn_and_a_flip_are_exact() -> None:
    picture = smooth(16, 16)[None, None]
    turned = resample_in_plane(picture, torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]))
    torch.testing.assert_close(turned, picture.rot90(1, (2, 3)), atol=1e-2, rtol=0)
    flipped = resample_in_plane(picture, torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]))
    torch.testing.assert_close(flipped, picture.flip(3), atol=1e-2, rtol=0)


def test_plane_and_index_axis_apart_equal_the_3d_resampling() -> None:
    # 0.02 HU: float32 rounding of positions on white noise of 2000 HU. The augmentation's own noise is 25 HU.
    crops = torch.rand(6, 1, 32, 48, 48, generator=seeded(1)) * 2000 - 1000
    matrices = draw_affines(report_classification(), 6, 3, seeded(2))
    grid = affine_grid(matrices, list(crops.shape), align_corners=False)
    whole = grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(resample_crops(crops, matrices), whole, atol=0.02, rtol=0)


def test_every_sample_gets_its_own_draw() -> None:
    slabs, masks = slabs_and_masks()
    for settings in (Augmentation(shift=0.2), Augmentation(scale=0.2), Augmentation(rotate=True)):
        moved, _ = augment_slabs(slabs, masks, settings, seeded())
        assert len(torch.unique(moved, dim=0)) == len(slabs)
    crops = smooth(16, 16, 16).repeat(4, 1, 1, 1, 1)
    assert len(torch.unique(augment_crops(crops, report_classification(), seeded()), dim=0)) == 4


def test_equal_generators_give_equal_batches_and_different_ones_do_not() -> None:
    slabs, masks = slabs_and_masks()
    one, two, other = (augment_slabs(slabs, masks, report_segmentation(), seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    generator = seeded(5)
    again = [augment_slabs(slabs, masks, report_segmentation(), generator)[0] for _ in range(2)]
    assert not torch.equal(again[0], again[1])


def test_settings_that_change_nothing_give_the_input_back() -> None:
    slabs, masks = slabs_and_masks()
    same_slabs, same_masks = augment_slabs(slabs, masks, Augmentation(), seeded())
    assert same_slabs is slabs
    assert same_masks is masks
    crops = smooth(8, 8, 8)[None, None]
    assert augment_crops(crops, Augmentation(), seeded()) is crops


def test_the_input_is_not_written_to() -> None:
    slabs, masks = slabs_and_masks()
    crops = smooth(16, 16, 16).repeat(2, 1, 1, 1, 1)
    before = slabs.clone(), masks.clone(), crops.clone()
    augment_slabs(slabs, masks, report_segmentation(), seeded())
    augment_crops(crops, report_classification(), seeded())
    assert all(torch.equal(a, b) for a, b in zip(before, (slabs, masks, crops)))


def test_noise_has_its_sigma_and_touches_the_image_only() -> None:
    slabs, masks = torch.zeros(4, 7, 64, 64), torch.ones(4, 1, 64, 64)
    noisy, same = augment_slabs(slabs, masks, Augmentation(noise_hu=25), seeded())
    assert noisy.std().item() == pytest.approx(25, rel=0.02)
    assert abs(noisy.mean().item()) < 0.5
    assert same is masks


def test_the_mask_moves_with_its_image_and_stays_binary() -> None:
    _, masks = slabs_and_masks(8)
    image = masks.expand(-1, 7, -1, -1) * 1000
    moved, moved_masks = augment_slabs(image, masks, Augmentation(flip=True, shift=0.2, rotate=True), seeded())
    assert moved_masks.unique().tolist() == [0, 1]
    assert torch.equal(moved_masks[:, 0] > 0, moved[:, 3] > 500)
    # The area of a moved, unscaled rectangle stays what it was, up to pixels on its edge.
    assert ((moved_masks.sum((1, 2, 3)) - 80).abs() <= 8).all()


def test_displacements_have_their_sigma_at_every_voxel_and_are_smooth() -> None:
    field = draw_displacements(2.0, 4000, [48, 40], 2, seeded(), torch.device("cpu"))
    assert field is not None
    assert field.shape == (4000, 2, 48, 40)
    # The sigma of 4000 numbers is known to 1.1 %; the worst of 3840 voxels lies within 4.5 times that.
    assert ((field.std(0) / 2 - 1).abs() < 0.05).all()
    assert field.mean(0).abs().max() < 0.2
    # Neighbours go together, what is two control points away only by the splines' overlap, and x apart from y.
    flat = field[:, 0, 20, 20], field[:, 0, 20, 21], field[:, 0, 20, 20 - 3 * KNOT_VOX // 2], field[:, 1, 20, 20]
    near, far, other = torch.corrcoef(torch.stack(flat))[0, 1:]
    assert near > 0.99
    assert far < 0.5
    assert abs(other) < 0.06
    # The slope of such splines is about 1.2 sigma / KNOT_VOX; below -1, at 5 sigma here, a picture folds over.
    slope = field.diff(dim=3)
    assert slope.std().item() == pytest.approx(1.2 * 2 / KNOT_VOX, rel=0.05)
    assert (slope < -1).float().mean() < 1e-6


def test_displacements_of_sigma_0_are_not_drawn() -> None:
    generator = seeded()
    assert draw_displacements(0.0, 4, [48, 48], 2, generator, torch.device("cpu")) is None
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_constant_displacement_is_a_shift(axis: int) -> None:
    picture = smooth(20, 24)[None, None]
    bend = torch.zeros(1, 2, 20, 24)
    bend[:, axis] = 3
    half_sides = 2 * 3 / (24, 20)[axis]
    shifted = resample_in_plane(picture, translation(2, axis, half_sides))
    torch.testing.assert_close(resample_in_plane(picture, translation(2, axis, 0), bend), shifted, atol=1e-2, rtol=0)


def test_a_constant_displacement_along_the_index_axis_is_a_shift() -> None:
    crop = smooth(12, 20, 20)[None, None]
    moved = resample_crops(crop, torch.eye(3, 4)[None], along=torch.full((1, 1, 12), 2.0))
    torch.testing.assert_close(moved[:, :, :10], crop[:, :, 2:], atol=1e-2, rtol=0)


def test_a_bent_crop_is_resampled_once_as_the_3d_resampling_would() -> None:
    crops = torch.rand(3, 1, 32, 48, 48, generator=seeded(1)) * 2000 - 1000
    settings = replace(report_classification(), elastic_vox=2.0, noise_hu=0)
    generator = seeded(2)
    matrices = draw_affines(settings, 3, 3, generator)
    bend = draw_displacements(2.0, 3, [48, 48], 2, generator, torch.device("cpu"))
    along = draw_displacements(2.0, 3, [32], 1, generator, torch.device("cpu"))
    assert bend is not None
    assert along is not None
    grid = affine_grid(matrices, list(crops.shape), align_corners=False)
    grid[..., :2] += bend.movedim(1, -1)[:, None] / 24
    grid[..., 2] += along[:, 0, :, None, None] / 16
    whole = grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)
    torch.testing.assert_close(augment_crops(crops, settings, seeded(2)), whole, atol=0.02, rtol=0)


def test_a_bent_mask_moves_with_its_image() -> None:
    rows = torch.arange(64.0)
    blob = (rows[:, None] - 31.5) ** 2 + (rows - 31.5) ** 2 <= 10**2
    masks = blob.float().expand(16, 1, 64, 64)
    image = (masks * 1000).expand(-1, 7, -1, -1)
    moved, moved_masks = augment_slabs(image, masks, Augmentation(elastic_vox=2), seeded())
    assert torch.equal(moved_masks[:, 0] > 0, moved[:, 3] > 500)
    assert torch.equal(moved[:, 0], moved[:, 6])  # the context slices go together

    def centers(pictures: torch.Tensor) -> torch.Tensor:
        total = pictures.sum((1, 2))
        return torch.stack([(pictures.sum(other) * rows).sum(1) / total for other in (1, 2)], dim=1)

    found = centers(moved_masks[:, 0])
    torch.testing.assert_close(found, centers(moved[:, 3]), atol=0.2, rtol=0)  # the mask's edge is whole pixels
    away = found - 31.5
    assert 1 < away.std() < 3  # each blob by another way, about sigma
    assert len(torch.unique(moved_masks, dim=0)) == 16
    # Bent, not only shifted: some blobs are stretched or squeezed.
    assert (moved_masks.sum((1, 2, 3)) / masks.sum((1, 2, 3)) - 1).abs().max() > 0.1


def test_bending_comes_last_and_leaves_the_other_draws_as_they_were() -> None:
    slabs, masks = torch.zeros(4, 7, 32, 32), torch.zeros(4, 1, 32, 32)
    crops = torch.zeros(4, 1, 16, 16, 16)
    plain = report_segmentation()
    for more in (replace(plain, elastic_vox=2.0), replace(plain, elastic_vox=2.0, scale_hu=0.1, shift_hu=5.0)):
        noise = augment_slabs(slabs, masks, plain, seeded())[0]
        changed = augment_slabs(slabs, masks, more, seeded())[0] - noise
        # Nothing but noise was there: what is left is one contrast and brightness a sample.
        torch.testing.assert_close(changed, changed[:, :1, :1, :1].expand_as(changed), atol=1e-3, rtol=0)
        changed = augment_crops(crops, more, seeded()) - augment_crops(crops, plain, seeded())
        torch.testing.assert_close(changed, changed[:, :, :1, :1, :1].expand_as(changed), atol=1e-3, rtol=0)


def test_equal_generators_bend_equally_and_every_sample_in_its_own_way() -> None:
    crops = smooth(16, 24, 24).repeat(4, 1, 1, 1, 1)
    settings = Augmentation(elastic_vox=1.0)
    one, two, other = (augment_crops(crops, settings, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len(torch.unique(one, dim=0)) == 4


def test_the_default_settings_draw_what_they_always_drew() -> None:
    # Frozen from the first version: a change here is a change of every seeded training run.
    generator = seeded(7)
    crops = augment_crops(smooth(16, 16, 16).repeat(2, 1, 1, 1, 1), report_classification(), generator)
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(crops[:, 0, 7, 7, 7:9].flatten(), expected, atol=0.05, rtol=0)


def test_contrast_leaves_air_and_brightness_moves_everything() -> None:
    air, water = torch.full((200, 1, 4, 4, 4), -1000.0), torch.zeros(200, 1, 4, 4, 4)
    torch.testing.assert_close(augment_crops(air, Augmentation(scale_hu=0.2), seeded()), air)
    scaled = augment_crops(water, Augmentation(scale_hu=0.2), seeded())[:, 0, 0, 0, 0]
    assert scaled.abs().max() <= 200
    assert scaled.std().item() == pytest.approx(200 / 3**0.5, rel=0.15)
    for picture in (air, water):
        shift = augment_crops(picture, Augmentation(shift_hu=30), seeded()) - picture
        assert shift.abs().max() <= 30
        assert shift[:, 0, 0, 0, 0].std().item() == pytest.approx(30 / 3**0.5, rel=0.15)
        assert torch.equal(shift, shift[:, :, :1, :1, :1].expand_as(shift))


def test_contrast_changes_no_mask() -> None:
    slabs, masks = slabs_and_masks()
    changed, same = augment_slabs(slabs, masks, Augmentation(scale_hu=0.1, shift_hu=20), seeded())
    assert same is masks
    assert not torch.equal(changed, slabs)


def test_autocast_does_not_coarsen_positions() -> None:
    crops, settings = smooth(16, 24, 24).repeat(2, 1, 1, 1, 1), replace(report_classification(), elastic_vox=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = augment_crops(crops, settings, seeded())
    assert torch.equal(under_autocast, augment_crops(crops, settings, seeded()))


@pytest.mark.parametrize(
    "fields", [{"shift": -0.1}, {"scale": 1.0}, {"noise_hu": -1}, {"shift": math.nan}, *IMPOSSIBLE]
)
def test_impossible_settings_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Augmentation(**fields)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_batch_on_the_gpu_with_a_generator_of_either_device(home: str) -> None:
    slabs, masks = (t.cuda() for t in slabs_and_masks())
    moved, moved_masks = augment_slabs(slabs, masks, report_segmentation(), torch.Generator(home).manual_seed(1))
    assert moved.is_cuda
    assert moved_masks.is_cuda
    still = Augmentation(flip=True, shift=0.1, scale=0.2, rotate=True)
    on_gpu = augment_crops(smooth(32, 48, 48).repeat(2, 1, 1, 1, 1).cuda(), still, seeded())
    on_cpu = augment_crops(smooth(32, 48, 48).repeat(2, 1, 1, 1, 1), still, seeded())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=0.05, rtol=0)
