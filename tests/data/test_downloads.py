"""Errors when TFDS's data is neither on disk nor downloadable."""

import json
import re
import socket
from urllib.parse import urlsplit

import pytest
import requests

from prompt_jax.data.downloads import source_dataset
from prompt_jax.errors import DataError

NO_NAME = r"\[Errno -3\] no such name"


class Network:
    """A network without downloads: hosts are not found, except that those in `up` answer HEAD requests."""

    def __init__(self):
        self.up = set()
        self.asked = []  # (method, host)

    def request(self, method, url, **options):
        host = urlsplit(url).netloc
        self.asked.append((method.upper(), host))
        if method.upper() == "HEAD" and host in self.up:
            return requests.Response()
        try:
            raise socket.gaierror(-3, "no such name")
        except socket.gaierror as error:
            raise requests.ConnectionError("Max retries exceeded") from error


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(requests.Session, "request", lambda _, *args, **options: network.request(*args, **options))
    return network


def check_error(name, folder, reason):
    import seqio

    source = seqio.TfdsDataSource(name, tfds_data_dir=str(folder), splits=("validation",))
    message = f"the data of t, TFDS's {name}, are not in {folder} "
    with pytest.raises(DataError, match=f"^{re.escape(message)}.* and cannot be downloaded: {reason}$"):
        source_dataset(seqio.Task("t", source, output_features={}), "validation")


def test_unreachable_hosts_are_tried_once(network, tmp_path):
    """TFDS would retry ten times, for minutes, with warnings and progress bars."""
    check_error("glue/cola:2.0.0", tmp_path, NO_NAME)
    hosts = [host for method, host in network.asked if method == "HEAD"]
    assert len(hosts) == len(network.asked) == len(set(hosts)) == 4
    assert "storage.googleapis.com" in hosts  # where TFDS looks for what is prepared
    assert list(tmp_path.iterdir()) == []


def test_if_a_host_answers_tfds_downloads(network, tmp_path):
    network.up = {"dl.fbaipublicfiles.com"}
    check_error("super_glue/boolq:1.0.2", tmp_path, NO_NAME)
    assert network.asked == [("HEAD", "dl.fbaipublicfiles.com"), ("GET", "dl.fbaipublicfiles.com")]
    check_error("glue/cola:1.0.0", tmp_path, "The version .* is too old for this version of TFDS .*")


def test_tfds_prepares_data_that_was_downloaded_before(network, tmp_path):
    (tmp_path / "downloads").mkdir()
    url = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip"
    (tmp_path / "downloads" / "BoolQ.zip.INFO").write_text(json.dumps({"urls": [url]}))
    check_error("super_glue/boolq:1.0.2", tmp_path, NO_NAME)
    assert network.asked == [("GET", "dl.fbaipublicfiles.com")]


def test_errors_of_the_data_sets_code_are_reported(network, tmp_path):
    import tensorflow_datasets as tfds

    class OutOfReach(tfds.core.GeneratorBasedBuilder):
        """Requests URLs that TFDS does not list."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

        def _split_generators(self, dl_manager):
            raise requests.ConnectionError("no route")

        def _generate_examples(self): ...

    check_error("out_of_reach:1.0.0", tmp_path, "no route")
    assert network.asked == []
