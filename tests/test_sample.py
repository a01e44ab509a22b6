"""The sample clip matches the script that draws it."""

from pathlib import Path

import av
import numpy as np

from examples import make_sample

SAMPLE = Path(__file__).parents[1] / "examples" / "sample.mp4"


def test_the_sample_is_small_and_has_the_size_of_its_script():
    assert SAMPLE.stat().st_size <= 1_000_000
    with av.open(str(SAMPLE)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (make_sample.HEIGHT, make_sample.WIDTH)
        assert stream.frames == make_sample.FRAMES
        assert stream.average_rate == make_sample.FPS


def test_the_sample_shows_the_drawn_frames_with_all_objects():
    drawn, masks = make_sample.render([make_sample.FRAMES // 2])
    with av.open(str(SAMPLE)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][make_sample.FRAMES // 2]
    assert np.abs(stored.astype(int) - drawn[0]).mean() < 5  # compression loss
    shares = np.bincount(masks[0].ravel(), minlength=5) / masks[0].size
    assert (shares[1:] > 0.01).all()
    assert 0.7 < shares[0] < 0.95
