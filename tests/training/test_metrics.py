"""Metrics of training steps: members that diverge."""

import numpy as np
import pytest

from experiments import with_name, with_options
from member_runs import assert_same_training, ensemble, losses, tokens
from prompt_jax import experiment as experiments
from prompt_jax.training.loop import train
from prompt_jax.training.metrics import Diverged


def test_nan_stops_and_keeps_the_last_good_prompt(experiment):
    wild = with_options(experiment, "optimizer", name="adamw", learning_rate=3e38, weight_decay=0.0)
    with pytest.raises(Diverged, match=r"step \d+: .* has the best prompt until then"):
        train(wild)
    assert np.isfinite(tokens(wild, "best.npz")).all()


@pytest.mark.slow
def test_a_diverged_member_is_frozen_and_the_others_continue(experiment, capfd):
    """At one learning rate the parameters overflow."""
    rates = (0.01, 3e38, 0.01)
    wild = with_options(ensemble(experiment, learning_rate=rates), "optimizer", name="adamw", weight_decay=0.0)
    _, progress = train(wild)
    assert [member.status for member in progress.members] == ["training", "diverged", "training"]
    said = capfd.readouterr().err
    assert "member 1: training diverged and was stopped: loss" in said and "has the best prompt until then" in said
    assert all(np.isfinite(each).all() for each in tokens(wild) + tokens(wild, "best.npz"))
    for number in (0, 2):
        alone = with_name(experiments.members(wild)[number], f"alone{number}")
        train(alone)
        assert_same_training(alone, wild, number)
    assert len(losses(wild, 1)) < len(losses(wild, 0)) == 6


def test_the_run_ends_when_all_members_have_diverged(experiment):
    rates = (3e38, 2e38)
    wild = with_options(ensemble(experiment, learning_rate=rates), "optimizer", name="adamw", weight_decay=0.0)
    with pytest.raises(Diverged, match="has the best prompt until then"):
        train(wild)
