from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastvim.training.board import Board


def test_a_later_session_replaces_what_an_earlier_one_recorded_beyond_it(tmp_path):
    for first_step, value in ((1, 1.0), (4, 2.0)):
        board = Board(tmp_path, first_step)
        for step in range(first_step, 7):
            board.add_scalars(step, {"loss": value, "lr": 0.1})
        board.close()
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(scalar.step, scalar.value) for scalar in scalars] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
        (6, 2.0),
    ]
