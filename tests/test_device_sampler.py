"""The sampler for GPUs, run on the CPU: the same votes as the host's, whatever the batches and however many the images."""

import numpy as np
import pytest
import torch

import smoothmix_deploy as smx
from smoothmix_deploy.artefacts import open_artefact
from smoothmix_deploy.certification.device_sampler import run_on_device
from smoothmix_deploy.certification.sampler import run
from smoothmix_deploy.certification.scheduler import Scheduler
from smoothmix_deploy.data import InMemorySet
from smoothmix_deploy.engines import device_votes, open_engine, votes
from smoothmix_deploy.rules.fixed import FixedRule

KEY = "5eed" * 8


def images_8bit(count):
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return InMemorySet("random", "test", x, np.arange(count) % 10, [str(k) for k in range(10)])


def counts(sampler, engine, images, noise, n=90):
    found = {}
    scheduler = Scheduler(range(len(images)), FixedRule(0.25, n, 0.001), 20, 10)

    def keep(job):
        found[job.index] = (job.selection.votes.counts_K.tolist(), job.estimation.votes.counts_K.tolist())

    sampler(engine, images, scheduler, sigma=0.25, key=KEY, noise=noise, after_batch=lambda _: scheduler.release(keep))
    scheduler.release(keep)
    return found


@pytest.mark.parametrize("batch_size", [7, 64, 256])
@pytest.mark.parametrize("noise", ["gaussian", "grid"])
def test_same_votes_as_on_the_host(digits_run, noise, batch_size):
    """More images than slots in the table (7), several images a batch (256), and a last batch that is not full."""
    images = images_8bit(12)
    engine = open_engine(open_artefact(digits_run), "torch", batch_size=batch_size, device="cpu")
    expected = counts(run, engine, images, noise)
    assert len(expected) == 12
    assert counts(run_on_device, engine, images, noise) == expected


def test_votes_on_the_device():
    """Ties go to the lowest index; NaN and Inf are no vote."""
    logits = np.array([[1, 3, 3], [0, 0, 0], [np.nan, 1, 2], [np.inf, 0, 1], [-np.inf, 0, 1], [5, 1, 2]], np.float32)
    assert device_votes(torch.from_numpy(logits)).tolist() == votes(logits).tolist() == [1, 0, -1, -1, -1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("noise", ["gaussian", "grid"])
def test_gpu_votes_like_the_cpu(digits_run, noise):
    """Grid noise: the same inputs bit for bit, so only ties within the engines' rounding may differ: fewer than 1 in 500."""
    images = images_8bit(12)
    artefact = open_artefact(digits_run)
    on_cpu = counts(run, open_engine(artefact, "torch", batch_size=64, device="cpu"), images, noise, n=1000)
    on_gpu = counts(run, open_engine(artefact, "torch", batch_size=64, device="cuda"), images, noise, n=1000)
    differ = sum(np.abs(np.subtract(on_cpu[i][1], on_gpu[i][1])).sum() / 2 for i in on_cpu)
    assert differ <= 12 * 1000 / 500


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_certificates_verify(digits_run, tmp_path):
    """The whole line on a GPU: certify, stop, resume, sample again: identical counts."""
    smx.certify(
        digits_run, engine="torch", device="cuda", data="digits", n=500, stop=20, out=tmp_path / "c.jsonl", seed=1
    )
    assert smx.verify(tmp_path / "c.jsonl", artefact=digits_run, rerun=5, device="cuda").same_engine
