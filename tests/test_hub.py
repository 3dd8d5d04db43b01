"""smx push and smx pull against a Hub of our own: a local HTTP server that speaks the endpoints huggingface_hub asks."""

import base64
import importlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import smoothmix_deploy as smx
from smoothmix_deploy.models.run_folder import load_model, read_config, write_config

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: hub)")
constants = importlib.import_module("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """One repository, `me/digits`: its files as the last commit left them, and every path that was asked for."""

    files: dict[str, bytes]
    asked: list[str]
    token = "Bearer hf_test"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        if self.headers.get("Authorization") != self.token:
            self.answer({"error": "no"}, 401)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/me/digits"})
        elif self.path == "/api/validate-yaml":
            bad = "broken" in json.loads(body)["content"]
            self.answer({"errors": [{"message": "bad front matter"}]} if bad else {}, 400 if bad else 200)
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        else:
            assert self.path == "/api/models/me/digits/commit/main"
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/digits/commit/1", "commitOid": COMMIT})

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if not path.removeprefix("/api/models").startswith("/me/digits"):
            self.answer({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/me/digits/tree/"):
            self.answer([
                {"type": "file", "path": n, "size": len(c), "oid": f"{k:040x}"}
                for k, (n, c) in enumerate(self.files.items())
            ])  # fmt: skip
        elif path.startswith("/api/models/me/digits"):
            self.answer({"id": "me/digits", "modelId": "me/digits", "sha": COMMIT, "siblings": [], "private": False})
        else:
            name = re.fullmatch(f"/me/digits/resolve/{COMMIT}/(.+)", path)[1]
            self.answer(self.files[name], ETag=f'"{hash(name):x}"', **{"X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The Hub that huggingface_hub talks to, a token for it, and a cache of its own."""
    handler = type("Handler", (FakeHub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "".join(template[1:]))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield handler
        listening.shutdown()
        thread.join()


@pytest.fixture
def run(digits_run, tmp_path):
    """A run folder that tests may change."""
    return shutil.copytree(digits_run, tmp_path / "run")


def test_there_and_back(server, run, tmp_path):
    """The weights come back bit for bit; state.pt and what else lies in the folder stay, and so do this machine's paths."""
    (run / "notes.txt").write_text("mine")
    config = read_config(run)
    data = {**config.data, "root": "/home/me/data"}
    write_config(run, type(config)(**{**vars(config), "data": data}))
    sent = smx.push(run, repo="me/digits")
    assert sent.revision == COMMIT
    assert set(server.files) == {"model.safetensors", "config.json", "README.md", "metrics.jsonl", "training.png"}
    assert b"/home/me" not in server.files["config.json"]
    assert server.files["README.md"] == (run / "MODEL_CARD.md").read_bytes()
    back = smx.pull("me/digits", out=tmp_path / "back")
    assert back.revision == COMMIT
    for name in ("model.safetensors", "metrics.jsonl", "training.png", "MODEL_CARD.md"):
        assert (back.path / name).read_bytes() == (run / name).read_bytes()
    assert read_config(back.path).data["digest"] == config.data["digest"]
    load_model(back.path, read_config(back.path))
    assert {p.name for p in tmp_path.iterdir()} - {"cache"} == {"back", "run"}  # no temporary folder is left


def test_only_known_names_are_downloaded(server, run, tmp_path):
    """Whatever else a repository holds is not even asked for."""
    smx.push(run, repo="me/digits")
    server.files |= {
        "state.pt": b"pickle",
        "extra.py": b"import os",
        "sub/config.json": b"{}",
        "training.png.exe": b"x",
    }
    server.asked.clear()
    back = smx.pull("me/digits", out=tmp_path / "back")
    assert {p.name for p in back.path.rglob("*")} == {
        "model.safetensors", "config.json", "MODEL_CARD.md", "metrics.jsonl", "training.png"
    }  # fmt: skip
    assert not any("state.pt" in path or "extra.py" in path or "sub" in path for path in server.asked)


def test_code_is_not_imported_unless_trusted(server, run, tmp_path, monkeypatch):
    """An architecture of the author's is refused before anything is imported; with consent it is built."""
    smx.push(run, repo="me/digits")
    marker = tmp_path / "imported"
    (tmp_path / "theirs.py").write_text(
        f"from pathlib import Path\nfrom smoothmix_deploy.models.lenet import DigitsNet\nPath({str(marker)!r}).touch()\n"
        "def net(num_classes):\n    return DigitsNet(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads(server.files["config.json"])
    server.files["config.json"] = json.dumps({**config, "arch": "theirs:net"}).encode()
    with pytest.raises(smx.BadInput, match=r"its network is code, theirs:net, .* add --trust-code"):
        smx.pull("me/digits", out=tmp_path / "back")
    assert not marker.exists()
    assert not (tmp_path / "back").exists()
    monkeypatch.setenv("SMX_TRUST_CODE", "theirs:net")
    smx.pull("me/digits", out=tmp_path / "back")
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("config.json", b"{}", "me/digits: config.json: not a run configuration"),
        ("config.json", None, "has no config.json"),
        ("model.safetensors", b"junk", "model.safetensors: not a readable safetensors file"),
        ("metrics.jsonl", b'{"epoch": "x"}\n', "metrics.jsonl, line 1"),
    ],
)
def test_what_is_no_run_folder_is_refused(server, run, tmp_path, name, content, word):
    """By the run folder's own reader; nothing is left behind."""
    smx.push(run, repo="me/digits")
    if content is None:
        del server.files[name]
    else:
        server.files[name] = content
    with pytest.raises(smx.BadInput, match=word) as caught:
        smx.pull("me/digits", out=tmp_path / "back")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "back").exists()
    assert {p.name for p in tmp_path.iterdir()} - {"cache"} == {"run"}


def test_push_wants_a_card_of_these_weights(server, run):
    """No card, or the card of other weights: nothing is sent."""
    other = load_model(run, read_config(run))
    other.net.state_dict()[next(iter(other.net.state_dict()))].mul_(1.5)
    from smoothmix_deploy.models.run_folder import save_weights

    save_weights(run, other)
    with pytest.raises(smx.CheckFailed, match="card of other weights"):
        smx.push(run, repo="me/digits")
    (run / "MODEL_CARD.md").unlink()
    with pytest.raises(smx.BadInput, match=r"MODEL_CARD\.md is missing; smx card"):
        smx.push(run, repo="me/digits")
    assert server.asked == []
    smx.card(run)
    smx.push(run, repo="me/digits")


def test_refusals_are_one_line(server, run, tmp_path, monkeypatch):
    """No token, a wrong one, a repository that is not there, a bad name, front matter that the Hub rejects, no Hub."""
    for repo in ("digits", "me/digits/x", "me/dig its", ""):
        with pytest.raises(smx.BadInput, match="user/name"):
            smx.pull(repo, out=tmp_path / "back")
    with pytest.raises(smx.BadInput, match="you/other: no such repository"):
        smx.pull("you/other", out=tmp_path / "back")
    card = (run / "MODEL_CARD.md").read_text()
    (run / "MODEL_CARD.md").write_text(card.replace("library_name:", "broken:"))
    with pytest.raises(smx.BadInput, match="bad front matter"):
        smx.push(run, repo="me/digits")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(smx.BadInput, match="401"):
        smx.push(run, repo="me/digits")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(smx.Unavailable, match="no Hugging Face token"):
        smx.push(run, repo="me/digits")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(smx.Unavailable, match="cannot be reached"):
        smx.pull("me/digits", out=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_extra_is_named(run, monkeypatch, tmp_path):
    """Without huggingface_hub."""
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    for call in (lambda: smx.push(run, repo="me/x"), lambda: smx.pull("me/x", out=tmp_path / "y")):
        with pytest.raises(smx.Unavailable, match=r"smoothmix-deploy\[hub\]"):
            call()
