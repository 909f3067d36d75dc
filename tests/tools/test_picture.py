"""The README's picture."""

from run_folders import ENSEMBLE, write_run
from tools.picture import draw


def test_the_picture_shows_the_members_and_their_vote(tmp_path):
    draw(write_run(tmp_path, ENSEMBLE), tmp_path / "demo.svg")
    text = (tmp_path / "demo.svg").read_text()
    assert all(shown in text for shown in ("base (ranking)", "member 2", "average", "vote", "80.0%", "31 examples"))
