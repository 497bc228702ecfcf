"""Tests of the augmentation of frames."""

import numpy as np
import pytest
import torch

from deflow_vision.datasets.augment import (
    KORNIA_PRESETS,
    Augmentation,
    AugmentConfig,
    _shift_pixels,
    shift,
)
from deflow_vision.seeding import derive_seed

ALWAYS = AugmentConfig(probability=1.0)


def random_frames(shape=(6, 4, 10, 8, 3)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def shifted_one_by_one(frames, offsets, padding):
    result = np.empty_like(frames)
    height, width = frames.shape[2:4]
    widths = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    for b, (top, left) in enumerate(offsets):
        padded = np.pad(frames[b], widths, mode="edge")
        result[b] = padded[:, top : top + height, left : left + width]
    return result


def test_shift_equals_padding_and_cropping_each_sample():
    frames = random_frames()
    offsets = torch.tensor([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
    expected = shifted_one_by_one(frames.numpy(), offsets.numpy(), padding=3)
    np.testing.assert_array_equal(shift(frames, offsets, padding=3).numpy(), expected)


@pytest.mark.parametrize("padding", [3, 12])
def test_shift_on_a_gpu_and_on_a_cpu_are_the_same(padding):
    frames = random_frames()
    rng = np.random.default_rng(0)
    offsets = torch.from_numpy(rng.integers(0, 2 * padding, size=(6, 2), endpoint=True))
    expected = shifted_one_by_one(frames.numpy(), offsets.numpy(), padding)
    np.testing.assert_array_equal(shift(frames, offsets, padding).numpy(), expected)
    np.testing.assert_array_equal(_shift_pixels(frames, offsets - padding).numpy(), expected)


def test_shift_repeats_the_edge_pixels():
    frames = random_frames()
    shifted = shift(frames, torch.zeros(6, 2, dtype=torch.int64), padding=3)
    assert torch.equal(shifted[:, :, :4, 4:], frames[:, :, :1, 1:5].expand(-1, -1, 4, -1, -1))


def test_offsets_are_those_of_the_step_and_the_stream():
    frames = random_frames()
    rng = np.random.default_rng(derive_seed(7, "augment", 11, 2))
    offsets = rng.integers(0, 6, size=(6, 2), endpoint=True)
    expected = shifted_one_by_one(frames.numpy(), offsets, padding=3)
    augmented = Augmentation(ALWAYS, seed=7, num_streams=4, streams=[2])(frames, step=11)
    np.testing.assert_array_equal(augmented.numpy(), expected)


def test_offsets_reach_every_shift_and_only_those():
    augmentation = Augmentation(ALWAYS, seed=0)
    offsets = np.concatenate([augmentation._offsets(step, 100) for step in range(20)])
    counts = np.bincount(offsets.flatten())
    assert len(counts) == 7
    assert counts.min() > 0.8 * counts.mean()


def test_all_frames_of_a_sample_are_shifted_alike():
    frames = random_frames((6, 1, 10, 8, 3)).repeat(1, 4, 1, 1, 1)
    augmented = Augmentation(ALWAYS, seed=0)(frames, step=0)
    assert not torch.equal(augmented, frames)
    assert torch.equal(augmented, augmented[:, :1].expand_as(augmented))


def test_the_coin_is_tossed_once_a_batch():
    frames = random_frames()
    augmentation = Augmentation(AugmentConfig(), seed=0)
    shifted = [(augmentation(frames, k) != frames).flatten(1).any(1).sum() for k in range(400)]
    # A batch is left alone, or (but for the 1 sample in 49 with the middle offset) shifted whole.
    assert {int(count) for count in shifted} <= {0, 4, 5, 6}
    assert 0.42 < np.mean([count > 0 for count in shifted]) < 0.58


def test_all_streams_toss_the_same_coin():
    streams = [Augmentation(AugmentConfig(), seed=3, num_streams=2, streams=[s]) for s in (0, 1)]
    tosses = [[aug._offsets(step, 2) is None for step in range(50)] for aug in streams]
    assert tosses[0] == tosses[1]
    assert len(set(tosses[0])) == 2


def test_the_coin_of_each_sample_is_an_option():
    frames = random_frames((40, 2, 10, 8, 3))
    augmentation = Augmentation(AugmentConfig(probability=0.25, per_sample=True), seed=0)
    shifted = torch.stack(
        [(augmentation(frames, k) != frames).flatten(1).any(1).float().mean() for k in range(50)]
    )
    assert ((shifted > 0) & (shifted < 1)).all()
    assert shifted.mean() == pytest.approx(0.25 * 48 / 49, abs=0.03)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_zero_and_one_are_certain(probability):
    for per_sample in (False, True):
        config = AugmentConfig(probability=probability, per_sample=per_sample)
        augmentation = Augmentation(config, seed=0)
        frames = random_frames()
        changed = [not torch.equal(augmentation(frames, k), frames) for k in range(20)]
        assert all(changed) if probability else not any(changed)


@pytest.mark.parametrize("config", [ALWAYS, AugmentConfig(1.0, kornia=("color_jitter",))])
def test_the_batch_of_a_step_is_always_augmented_alike(config):
    frames = random_frames()
    first = Augmentation(config, seed=5)
    first(frames, step=1)
    again = Augmentation(config, seed=5)(frames, step=8)
    assert torch.equal(first(frames, step=8), again)
    assert not torch.equal(first(frames, step=9), again)
    assert not torch.equal(Augmentation(config, seed=6)(frames, step=8), again)


@pytest.mark.parametrize(
    "config",
    [ALWAYS, AugmentConfig(per_sample=True), AugmentConfig(kornia=("color_jitter", "grayscale"))],
)
def test_two_streams_in_one_process_equal_two_processes(config):
    frames = random_frames()
    together = Augmentation(config, seed=1, num_streams=2, streams=[0, 1])
    alone = [Augmentation(config, seed=1, num_streams=2, streams=[s]) for s in (0, 1)]
    for step in range(6):
        parts = [aug(part, step) for aug, part in zip(alone, frames.chunk(2), strict=True)]
        assert torch.equal(together(frames, step), torch.cat(parts))


def test_augmentation_leaves_its_input_alone():
    frames = random_frames()
    Augmentation(AugmentConfig(1.0, kornia=("random_erasing",)), seed=0)(frames, step=0)
    assert torch.equal(frames, random_frames())


@pytest.mark.parametrize("name", KORNIA_PRESETS)
def test_kornia_presets_draw_once_a_sample(name):
    frames = random_frames((12, 1, 16, 20, 3)).repeat(1, 4, 1, 1, 1)
    augmentation = Augmentation(AugmentConfig(probability=0.0, kornia=(name,)), seed=0)
    changed = False
    for step in range(4):
        augmented = augmentation(frames, step)
        assert augmented.shape == frames.shape
        assert augmented.dtype == torch.uint8
        assert torch.equal(augmented, augmented[:, :1].expand_as(augmented))
        changed |= not torch.equal(augmented, frames)
    assert changed


def test_kornia_draws_differ_between_samples():
    frames = random_frames((1, 2, 16, 20, 3)).repeat(8, 1, 1, 1, 1)
    config = AugmentConfig(probability=0.0, kornia=("ColorJitter(0.5, 0.5, 0.5, 0.1, p=1.0)",))
    augmented = Augmentation(config, seed=0)(frames, step=0)
    assert len({sample.numpy().tobytes() for sample in augmented}) == 8


def test_kornia_keeps_frames_that_it_does_not_change():
    config = AugmentConfig(probability=0.0, kornia=("RandomGrayscale(p=0.0)",))
    assert torch.equal(Augmentation(config, seed=0)(random_frames(), step=0), random_frames())


def test_kornia_does_not_touch_the_global_generator():
    augmentation = Augmentation(AugmentConfig(kornia=tuple(KORNIA_PRESETS)), seed=0)
    before = torch.get_rng_state()
    augmentation(random_frames((4, 2, 16, 20, 3)), step=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color_jiter", "color_jitter"),
        ("RandomGaussianBlurr((3, 3))", "nearest: RandomGaussianBlur"),
        ("RandomGrayscale(probability=0.1)", "kornia refuses"),
        ("RandomGrayscale(p=open('x'))", "plain values"),
        ("blur(", "cannot read"),
        ("VideoSequential", "unknown kornia augmentation"),
    ],
)
def test_unusable_kornia_names_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(AugmentConfig(kornia=(text,)), seed=0)


def test_kornia_augmentations_that_change_the_size_are_refused():
    augmentation = Augmentation(AugmentConfig(kornia=("Resize((8, 8))",)), seed=0)
    with pytest.raises(ValueError, match="keep the size"):
        augmentation(random_frames(), step=0)


def test_batches_that_do_not_divide_are_refused():
    augmentation = Augmentation(ALWAYS, seed=0, num_streams=4, streams=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="batch of 6 does not divide among 4 streams"):
        augmentation(random_frames(), step=0)


def test_frames_in_float_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        Augmentation(ALWAYS, seed=0)(random_frames().float(), step=0)


@pytest.mark.parametrize("changes", [{"probability": 1.5}, {"padding": -1}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match=str(next(iter(changes.values())))):
        AugmentConfig(**changes)


def test_streams_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="not among the 2"):
        Augmentation(ALWAYS, seed=0, num_streams=2, streams=[2])
