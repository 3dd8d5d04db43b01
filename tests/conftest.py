"""Fixtures shared by all tests: one small trained classifier and its export."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a core a worker

import bad_files
import hostile_files
import pytest

import smoothmix_deploy as smx


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")


@pytest.fixture
def undrawn(monkeypatch):
    """Runs whose training.png is an empty file: drawing it takes longer than a few epochs of digits."""
    name = "smoothmix_deploy.training.record.write_training_plot"
    monkeypatch.setattr(name, lambda lines, path, title: path.write_bytes(b""))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run folder: digits-cnn, a few epochs of Gaussian training, good enough to certify most digits."""
    return smx.train(
        data="digits", method="gaussian", sigma=0.25, epochs=6, seed=0, out=tmp_path_factory.mktemp("model") / "run"
    ).path


@pytest.fixture(scope="session")
def digits_export(digits_run):
    """Its export folder."""
    return smx.export(digits_run, out=digits_run.parent / "export", seed=0).path


@pytest.fixture(scope="session")
def files(tmp_path_factory, digits_run, digits_export):
    """A folder full of files that are not what they should be."""
    root = tmp_path_factory.mktemp("bad")
    bad_files.write_all(root, digits_run, digits_export)
    return root


@pytest.fixture(scope="session")
def certs(tmp_path_factory, digits_export):
    """A few good certificates of the export."""
    return smx.certify(digits_export, n=100, stop=3, seed=1, out=tmp_path_factory.mktemp("certs") / "c.jsonl").path


@pytest.fixture(scope="session")
def places(tmp_path_factory, files, digits_run, digits_export, certs):
    """What upper-case names in the corpus stand for."""
    evil = tmp_path_factory.mktemp("hostile") / "evil"
    evil.mkdir()
    hostile_files.write_all(evil, digits_run, digits_export, certs)
    return {"FILES": files, "EVIL": evil, "RUN": digits_run, "EXPORT": digits_export, "CERTS": certs}
