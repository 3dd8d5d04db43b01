"""Fixtures shared by all tests: one small trained classifier and its export."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

import smoothmix_deploy as smx


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:torch")


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
