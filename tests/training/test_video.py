"""Tests of films and sheets of pictures."""

import re
import subprocess

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from deflow_vision.training import video
from deflow_vision.training.video import contact_sheet, enlarge, write_video


def grey_episode(length=7, height=16, width=12):
    """Frame t is grey of level 20 t."""
    levels = np.arange(length, dtype=np.uint8) * 20
    return np.broadcast_to(levels[:, None, None, None], (length, height, width, 3)).copy()


def ffmpeg(*arguments):
    return subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *arguments], capture_output=True)


def read_video(path):
    # Not through imageio, whose reader leaves its pipes to the garbage collector.
    told = ffmpeg("-i", path).stderr.decode()
    width, height = map(int, re.search(r", (\d+)x(\d+)", told).groups())
    film = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-").stdout
    return np.frombuffer(film, np.uint8).reshape(-1, height, width, 3)


def test_a_video_has_every_frame_in_order(tmp_path):
    write_video(tmp_path / "a.mp4", grey_episode(), fps=10)
    levels = read_video(tmp_path / "a.mp4").mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, np.arange(7) * 20, atol=4)


def test_a_video_is_h264_in_yuv420p_at_the_given_rate(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_episode(), fps=10)
    told = ffmpeg("-i", path).stderr.decode()
    for word in ("h264", "yuv420p", "10 fps"):
        assert word in told


def test_small_frames_are_enlarged_by_a_whole_factor(tmp_path):
    write_video(tmp_path / "a.mp4", grey_episode(height=64, width=48))
    assert read_video(tmp_path / "a.mp4").shape == (7, 256, 192, 3)


def test_enlarging_repeats_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), dtype=np.uint8)
    enlarged = enlarge(frames, min_side=10)
    assert enlarged.shape == (2, 9, 12, 3)
    for i in range(3):
        np.testing.assert_array_equal(enlarged[:, i::3, i::3], frames)


def test_large_frames_keep_their_size(tmp_path):
    write_video(tmp_path / "a.mp4", grey_episode(length=2, height=200, width=300))
    assert read_video(tmp_path / "a.mp4").shape == (2, 200, 300, 3)


def test_odd_sides_are_padded_by_one_pixel(tmp_path):
    write_video(tmp_path / "a.mp4", grey_episode(length=2, height=257, width=259))
    assert read_video(tmp_path / "a.mp4").shape == (2, 258, 260, 3)


def test_a_video_of_one_frame_can_be_written(tmp_path):
    write_video(tmp_path / "a.mp4", grey_episode(length=1))
    assert len(read_video(tmp_path / "a.mp4")) == 1


def test_a_failed_write_leaves_the_old_video_and_no_rest(tmp_path, monkeypatch):
    def fail(part, *_, **__):
        part.write_bytes(b"half a film")
        raise OSError("disk full")

    write_video(tmp_path / "videos" / "a.mp4", grey_episode())
    before = (tmp_path / "videos" / "a.mp4").read_bytes()
    monkeypatch.setattr(video.iio, "imwrite", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(tmp_path / "videos" / "a.mp4", grey_episode())
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["a.mp4"]
    assert (tmp_path / "videos" / "a.mp4").read_bytes() == before


def test_a_contact_sheet_shows_first_and_last_frame(tmp_path):
    contact_sheet(tmp_path / "a.png", grey_episode(), num_pictures=4, columns=2)
    sheet = iio.imread(tmp_path / "a.png")
    assert sheet.shape == (2 * 128 + 3 * 4, 2 * 96 + 3 * 4, 3)
    corners = [int(sheet[i, j, 0]) for i in (60, 200) for j in (50, 150)]
    assert corners == [0, 40, 80, 120]


def test_a_short_episode_makes_a_short_sheet(tmp_path):
    contact_sheet(tmp_path / "a.png", grey_episode(length=2), num_pictures=12, columns=6)
    assert iio.imread(tmp_path / "a.png").shape == (128 + 8, 2 * 96 + 3 * 4, 3)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_frames_that_are_no_film_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8 frames"):
        write_video(tmp_path / "a.mp4", frames)
