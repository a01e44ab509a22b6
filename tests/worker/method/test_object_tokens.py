"""Clusters and object scores become objects: parts in constant contact are joined, everything else is background."""

import numpy as np
import pytest

from worker.method.object_tokens import separate_objects, single_object

T, H, W = 10, 8, 16
GROUND, HEAD, BODY, BALL, SKY = range(5)


def video():
    """A head above a body, always in contact; a ball that touches the body in one of ten frames."""
    assignment = np.full((T, H, W), GROUND)
    assignment[:, :2] = SKY
    assignment[:, 2:4, 4:6] = HEAD
    assignment[:, 4:7, 3:7] = BODY
    for t in range(T):
        left = 7 if t == 0 else 9
        assignment[t, 5:7, left : left + 2] = BALL
    distances = np.where(np.arange(5) == assignment.reshape(T, -1, 1), 0.0, 6.0)
    score = np.where(np.isin(assignment, (HEAD, BODY, BALL)), 1.5, 0.2)
    return assignment, distances, score


def test_parts_in_constant_contact_are_one_object():
    assignment, distances, score = video()
    tokens = separate_objects(assignment, distances, 5, score)
    assert tokens.is_background.tolist() == [False, False, True]
    assert tokens.background_clusters == 2
    person, ball = (tokens.labels[0][assignment[0] == cluster] for cluster in (HEAD, BALL))
    expected = np.select([np.isin(assignment, (HEAD, BODY)), assignment == BALL], [person[0], ball[0]], 2)
    np.testing.assert_array_equal(tokens.labels, expected)
    assert {person[0], ball[0]} == {0, 1}


def test_a_token_is_an_object_token_exactly_where_its_score_exceeds_1():
    assignment, distances, score = video()
    random = np.random.default_rng(0)
    score = np.where(random.random(score.shape) < 0.2, 2 - score, score)
    tokens = separate_objects(assignment, distances + random.random(distances.shape), 5, score)
    np.testing.assert_array_equal(tokens.labels == len(tokens.is_background) - 1, score <= 1)


def test_an_object_token_of_a_background_cluster_joins_the_nearest_object():
    assignment, distances, score = video()
    score[3, 7, 15] = 2  # ground
    distances[3, 7 * W + 15] = [0, 5, 4, 1, 6]
    tokens = separate_objects(assignment, distances, 5, score)
    assert tokens.labels[3, 7, 15] == tokens.labels[0][assignment[0] == BALL][0]


@pytest.mark.parametrize("frames_apart", [0, 1, 2])
def test_two_clusters_are_one_object_if_they_touch_in_nine_of_ten_frames(frames_apart):
    assignment = np.zeros((10, 4, 12), int)
    assignment[:, 1:3, 2:4] = 1
    for t in range(10):
        left = 4 if t >= frames_apart else 6
        assignment[t, 1:3, left : left + 2] = 2
    distances = np.where(np.arange(3) == assignment.reshape(10, -1, 1), 0.0, 6.0)
    tokens = separate_objects(assignment, distances, 3, 2.0 * (assignment > 0))
    assert len(tokens.is_background) - 1 == (1 if frames_apart < 2 else 2)


def test_the_cluster_with_most_object_tokens_is_the_object_if_none_has_a_majority():
    assignment, distances, _ = video()
    score = np.zeros((T, H, W))
    score[:, 4, 3:5] = 3  # a sixth of the body
    tokens = separate_objects(assignment, distances, 5, score)
    np.testing.assert_array_equal(tokens.labels == 0, score > 1)


def test_without_object_tokens_everything_is_background():
    assignment, distances, score = video()
    for tokens in (separate_objects(assignment, distances, 5, score - 1), single_object(5, score - 1)):
        assert tokens.is_background[tokens.labels].all()


def test_a_single_object_is_all_object_tokens():
    _, _, score = video()
    tokens = single_object(5, score)
    np.testing.assert_array_equal(tokens.labels == 0, score > 1)
    np.testing.assert_array_equal(tokens.labels == 1, score <= 1)
    assert tokens.is_background.tolist() == [False, True]
