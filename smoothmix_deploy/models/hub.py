"""`smx push` and `smx pull`: run folders on the Hugging Face Hub.

Only the files of `PUBLISHED` travel, either way: never the training state, nor anything else that lies in the folder or
in a stranger's repository. What comes from there is read by the run folder's reader before it is put in place, and its
configuration may not name code to import unless the user trusts it. The model card is the repository's README.md.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data import public_name
from ..errors import BadInput, CheckFailed, Unavailable
from ..files import sha256_file, to_json
from ..messages import first_line
from .run_folder import (
    CARD,
    CONFIG,
    METRICS,
    PLOT,
    WEIGHTS,
    RunConfig,
    check_folder,
    load_model,
    read_config,
    read_metrics,
    write_config,
)

PUBLISHED = {WEIGHTS: WEIGHTS, CONFIG: CONFIG, CARD: "README.md", METRICS: METRICS, PLOT: PLOT}
"""Name in the run folder: name in the repository."""
_NEEDED = (WEIGHTS, CONFIG)


@dataclass(frozen=True)
class PushResult:
    """Where the model is now, and the files that were sent."""

    url: str
    revision: str
    files: list[str]


@dataclass(frozen=True)
class PullResult:
    """The run folder, the commit it came from, and its weights' digest."""

    path: Path
    revision: str
    weights_sha256: str


def push(run: Path | str, *, repo: str, private: bool = False) -> PushResult:
    """Publish the run folder `run` as the model repository `repo` (user/name), created if need be, in one commit.

    config.json goes without this machine's paths. Raises BadInput (no run folder, no card, no such repository),
    CheckFailed (the card is about other weights), Unavailable (no huggingface_hub, no token, Hub not reached).
    """
    hub, run = _hub(repo), Path(run)
    config = read_config(run)
    missing = next((name for name in (*_NEEDED, CARD) if not (run / name).exists()), None)
    if missing is not None:
        raise BadInput(f"{run}: {missing} is missing{f'; smx card {run} writes it' if missing == CARD else ''}")
    if sha256_file(run / WEIGHTS) not in (run / CARD).read_text(encoding="utf-8"):
        raise CheckFailed(
            f"{run / CARD}: does not name the SHA-256 of {WEIGHTS}: a card of other weights; smx card {run}"
        )
    if hub.get_token() is None:
        raise Unavailable("no Hugging Face token; set HF_TOKEN, or run: hf auth login")
    content: dict[str, Any] = {name: run / name for name in PUBLISHED if (run / name).exists()}
    content[CONFIG] = (to_json(asdict(_without_paths(config)), indent=2) + "\n").encode()
    files = [hub.CommitOperationAdd(PUBLISHED[name], value) for name, value in content.items()]
    with _errors(hub, repo):
        api = hub.HfApi(library_name="smoothmix-deploy")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, files, commit_message="Model, card and metrics of a training run")
    return PushResult(str(commit.commit_url), str(commit.oid), [PUBLISHED[name] for name in content])


def pull(repo: str, *, out: Path | str, revision: str | None = None) -> PullResult:
    """Download the model repository `repo` (user/name) into the new run folder `out`: checked, or not at all.

    `revision`: a branch, tag or commit. Raises BadInput (no such repository, not a run folder, a network that is code
    without consent), Unavailable (no huggingface_hub, Hub not reached).
    """
    hub, out = _hub(repo), Path(out)
    check_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with _errors(hub, repo):
            commit = str(hub.HfApi(library_name="smoothmix-deploy").model_info(repo, revision=revision).sha)
            hub.snapshot_download(
                repo, revision=commit, local_dir=work / "all", allow_patterns=list(PUBLISHED.values())
            )
        folder = work / "run"
        folder.mkdir()
        for name, remote in PUBLISHED.items():
            if (work / "all" / remote).is_file():
                (work / "all" / remote).rename(folder / name)
        digest = _check_pulled(repo, folder)
        folder.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return PullResult(out, commit, digest)


def _check_pulled(repo: str, folder: Path) -> str:
    """The digest of the weights of a stranger's run folder, if it is one and its weights fit its network."""
    missing = next((name for name in _NEEDED if not (folder / name).exists()), None)
    if missing is not None:
        raise BadInput(f"{repo}: has no {missing}, so it is no run folder of smx")
    try:
        config = read_config(folder)
        read_metrics(folder)
        load_model(folder, config)
    except BadInput as error:  # with the repository's name in place of the temporary folder's
        raise BadInput(f"{repo}: {str(error).replace(f'{folder}/', '')}") from None
    write_config(folder, _without_paths(config))
    return sha256_file(folder / WEIGHTS)


def _without_paths(config: RunConfig) -> RunConfig:
    """Where the data lay is nobody else's business, and of no use to them."""
    data = config.data
    name = data.get("name")
    return replace(config, data={**data, "root": None, "name": public_name(name) if name else name})


def _hub(repo: str) -> Any:
    """huggingface_hub, if it is there and `repo` can be a name of its."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError:
        raise Unavailable("huggingface_hub is not installed; install smoothmix-deploy[hub]") from None
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = ""
    if repo.count("/") != 1:
        raise BadInput(f"--repo {repo or 'given'}: expected user/name, as on huggingface.co")
    return huggingface_hub


@contextlib.contextmanager
def _errors(hub: Any, repo: str) -> Iterator[None]:
    """The Hub's answers and the network's, as errors of ours."""
    errors = hub.errors
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, errors.RevisionNotFoundError) else "repository"
        raise BadInput(f"{repo}: no such {what}, or not for this token (see hf auth whoami)") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        kind = BadInput if status in (400, 401, 403) else Unavailable
        raise kind(f"{repo}: the Hub refused ({status}: {first_line(error)})") from None
    except ValueError as error:  # e.g. a card whose front matter somebody broke
        raise BadInput(f"{repo}: {' '.join(str(error).split())[:300]}") from None
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename:  # a file of this machine
            raise
        raise Unavailable(f"{repo}: the Hub cannot be reached ({first_line(error)})") from None
