"""The corpus: command lines that must be refused, with their exit code and words that the error must have.

FILES is the folder of `bad_files`, EVIL that of `hostile_files`, RUN and EXPORT are good ones. A new command gets its rows in
a table of its own; a new kind of bad file gets a line in one of those modules and a row here.
"""

ARTEFACTS = [
    ("nope", 2, "nope: no such file or folder"),
    ("FILES/text", 2, "not a run folder, an export folder, or an .onnx"),
    ("FILES/empty-folder", 2, "neither a run folder"),
    ("FILES/folder.onnx", 2, "neither a run folder"),
    ("FILES/zero.onnx", 2, "zero.onnx"),
    ("FILES/random.onnx", 2, "not an ONNX model, or a damaged one"),
    ("FILES/cut.onnx", 2, "not an ONNX model, or a damaged one"),
    ("FILES/two-inputs.onnx", 2, ("one float32 image input", "x: ", "z: ")),
    ("FILES/int-input.onnx", 2, ("one float32 image input", "int64")),
    ("FILES/flat-input.onnx", 2, ("one float32 image input", "64")),
    ("FILES/free-size.onnx", 2, "its image size is not fixed"),
    ("FILES/image-output.onnx", 2, "expected class scores"),
    ("FILES/one-class.onnx", 2, "expected class scores"),
    ("FILES/custom-op.onnx", 2, "Frobnicate"),
    ("FILES/other-size.onnx", 2, ("images are 1x8x8", "the model takes 1x2x4")),
    ("FILES/fixed-batch.onnx --batch-size 8", 2, ("--batch-size 8", "batches of 16 only")),
    ("FILES/empty-folder/outside.onnx", 2, "outside.data"),
    ("FILES/metadata-not-json.onnx", 2, "not JSON"),
    ("FILES/manifest-cut", 2, ("manifest.json", "not valid JSON")),
    ("FILES/manifest-list", 2, ("manifest.json", "expected a JSON object")),
    ("FILES/export-kind", 2, "not an export manifest"),
    ("FILES/export-escapes", 2, "manifest.json"),
    ("FILES/export-unlisted", 2, ("manifest.json", "no SHA-256 of model.onnx")),
    ("FILES/export-max-batch --batch-size 5", 2, ("--batch-size 5", "at most 4")),
    ("FILES/export-sigma-zero", 2, ("manifest.json", "sigma")),
    ("FILES/altered", 3, ("model.onnx", "SHA-256", "export again")),
    ("FILES/altered/model.onnx", 3, ("SHA-256", "export again")),
    ("FILES/weights-cut", 2, "not a readable safetensors file"),
    ("FILES/weights-zero", 2, "not a readable safetensors file"),
    ("FILES/weights-nan", 2, ("NaN or infinite weights", "cannot be certified")),
    ("FILES/no-weights", 2, "model.safetensors is missing"),
    ("FILES/config-zero", 2, ("config.json", "not valid JSON")),
    ("FILES/config-binary", 2, ("config.json", "not valid JSON")),
    ("FILES/run-arch", 2, "--arch nope: unknown"),
    ("FILES/run-classes", 2, ("config.json", "class_names")),
    ("FILES/run-shape", 2, "images are 1x8x8, the model takes 1x9x9"),
    ("FILES/run-version", 2, "format version 1"),
    ("FILES/bool-output.onnx", 2, "expected class scores"),
    ("FILES/string-output.onnx", 2, "expected class scores"),
    ("FILES/outside.onnx", 2, "outside"),
    ("FILES/metadata-list.onnx", 2, "metadata"),
    ("FILES/metadata-null.onnx", 2, "metadata"),
    ("FILES/metadata-sigma-text.onnx", 2, "sigma"),
    ("FILES/metadata-data-text.onnx", 2, "metadata"),
    ("FILES/export-sigma-text", 2, ("manifest.json", "sigma")),
    ("FILES/export-sigma-list", 2, ("manifest.json", "sigma")),
    ("FILES/export-digest-null", 2, "manifest.json"),
    ("FILES/export-max-batch-text", 2, ("manifest.json", "max_batch")),
    ("FILES/export-data-text", 2, ("manifest.json", "data")),
    ("FILES/export-data-number", 2, ("manifest.json", "data")),
    ("FILES/export-names-short", 2, ("manifest.json", "class_names")),
    ("FILES/export-names-number", 2, ("manifest.json", "class_names")),
    ("FILES/export-version", 2, ("manifest.json", "version")),
    ("FILES/config-deep", 2, "config.json"),
    ("FILES/run-arch-null", 2, ("config.json", "arch")),
    ("FILES/run-sigma-text", 2, ("config.json", "sigma")),
    ("FILES/run-mean", 2, ("config.json", "mean_sd")),
    ("FILES/run-data-text", 2, ("config.json", "data")),
    ("FILES/run-names-short", 2, ("config.json", "class_names")),
]


DATA = [
    ("nope", 2, "--data nope: unknown; known: digits"),
    ("npz", 2, "--data npz: unknown"),
    ("mnist", 2, "needs --data-root"),
    ("mnist --data-root FILES/empty-folder", 2, ("not found", "--download")),
    ("mnist --data-root FILES/text", 2, "FILES/text".partition("/")[2]),
    ("imagenet --data-root nope", 2, "not found"),
    ("digits --split val", 2, "--split val: must be train or test"),
    ("npz:nope.npz", 2, "nope.npz: no such file"),
    *[(f"npz:FILES/{name}.npz", 2, f"{name}.npz: not a readable .npz file")
      for name in ("zero", "random", "folder", "cut", "flipped", "pickle", "objects", "code")],
    ("npz:FILES/no-y.npz", 2, "has no array y; found x"),
    *[(f"npz:FILES/{name}.npz", 2, "outside [0, 1]") for name in ("nan", "infinite", "bytes-as-floats", "below")],
    *[(f"npz:FILES/{name}.npz", 2, "expected uint8 or floats") for name in ("integers", "bools")],
    ("npz:FILES/flat.npz", 2, "x has shape (20, 8)"),
    ("npz:FILES/none.npz", 2, "no images"),
    ("npz:FILES/other-size.npz", 2, "images are 1x9x9, the model takes 1x8x8"),
    ("npz:FILES/colour.npz", 2, "images are 3x8x8, the model takes 1x8x8"),
    ("npz:FILES/label-high.npz", 2, ("has label 14", "0 .. 9")),
    ("npz:FILES/label-negative.npz", 2, "negative label"),
    ("npz:FILES/label-float.npz", 2, "y is float64"),
    ("npz:FILES/label-short.npz", 2, ("y is int64 (5,)", "expected 20 integers")),
    ("folder:nope", 2, "nope: no such folder"),
    ("folder:FILES/text", 2, "no such folder"),
    ("folder:FILES/empty-folder", 2, "no images found"),
    ("folder:FILES/pictures-cut --start 3", 2, "a.png"),
    ("npz:FILES/texts.npz", 2, "texts.npz"),
    ("npz:FILES/single.npz", 2, "single.npz"),
    ("npz:FILES/single.npy", 2, "single.npy"),
    ("npz:FILES/label-huge.npz", 2, "label"),  # fills the memory
]  # fmt: skip


OPTIONS = [
    *[(f"--sigma {value}", 2, "must be a positive number") for value in ("0", "-1", "nan", "inf", "-inf")],
    *[(f"--alpha {value}", 2, "must lie in [1e-100, 0.5)") for value in ("0", "1", "-1", "nan", "inf", "0.5")],
    *[(f"--n {value}", 2, "must be at least 1") for value in ("0", "-5")],
    *[(f"--n {value}", 2, ("even a unanimous vote abstains", "--n 10")) for value in ("1", "5", "9")],
    ("--n 1.5", 2, "--n"),
    *[(f"--n0 {value}", 2, "must be at least 1") for value in ("0", "-1")],
    *[(f"--batch-size {value}", 2, "must be at least 1") for value in ("0", "-1")],
    *[(f"--threads {value}", 2, "--threads") for value in ("0", "-1", "999999")],
    ("--start -1", 2, "--start -1"),
    ("--start 400", 2, "selects none of the 360 images"),
    ("--stop 0", 2, "selects none"),
    ("--stop -1", 2, "--stop -1"),
    ("--skip 0", 2, "--skip 0"),
    ("--skip -1", 2, "--skip -1"),
    ("--start 2 --stop 2", 2, "selects none"),
    ("--engine nope", 2, "known engines: trt, "),
    ("--engine torch", 2, "use --engine ort"),
    ("--device gpu", 2, "must be auto, cpu or cuda"),
    ("--device cuda", 4, "--device cpu"),
    ("--rule nope", 2, "known rules: fixed"),
    ("--noise nope", 2, "known: gaussian"),
    ("--seed x", 2, "--seed"),
    ("--nonsense", 2, "No such option: --nonsense"),
    ("--out FILES/text", 2, "exists; add --resume"),
    ("--out FILES/text --resume", 2, "text"),
    ("--out FILES/empty-folder --resume", 2, "empty-folder"),
    ("--out FILES/text/c.jsonl", 2, "text"),
    ("--tsv FILES/text/c.tsv --out FILES/text/c.jsonl", 2, "text"),
    ("--alpha 5e-324", 2, "--alpha"),
    ("--tsv c.jsonl", 2, "--tsv"),
    ("--tsv FILES/text/c.tsv", 2, "--tsv"),
    ("--tsv FILES/empty-folder", 2, "--tsv"),
]


OTHERS = [
    ("export nope --out e", 2, "nope: no such file"),
    ("export EXPORT --out e --layout nchw --mean 1,2", 2, "--mean"),
    ("export FILES/good.onnx --out e", 2, "--sigma"),
    ("export RUN --out e --layout nhwc", 2, "is a run folder"),
    ("export EXPORT --out e --precision int4", 2, "--precision"),
    ("export RUN --out e --precision fp8", 2, "--format trt"),
    ("export EXPORT --out e --input-shape 1,9,9", 2, "--input-shape"),
    ("export EXPORT --out e --input-range -1", 2, "--input-range"),
    ("export EXPORT --out e --layout x", 2, "--layout"),
    ("export RUN --out e --max-radius-lost 2", 2, "--max-radius-lost"),
    ("export RUN --out e --calibration-samples 0", 2, "--calibration-samples"),
    ("export FILES/weights-cut --out e", 2, "safetensors"),
    ("export RUN --out e --format nope", 2, "--format nope"),
    ("export RUN --out e --precision int4", 2, "--precision int4"),
    ("export RUN --out e --max-batch 0", 2, "at least 1"),
    *[(f"export RUN --out e --max-disagreement {value}", 2, "must lie in [0, 1)") for value in ("-1", "1", "nan")],
    ("export RUN --out e --parity-samples 0", 2, "at least 1"),
    ("export RUN --out e --data npz:FILES/nan.npz", 2, "outside [0, 1]"),
    ("export RUN --out FILES/text", 2, "is a file; choose a folder"),
    ("export RUN --out FILES/text/e", 2, "text"),
    ("export RUN --out FILES/pictures", 2, "not empty and not an earlier export"),
    ("export RUN --out RUN", 2, "not empty and not an earlier export"),
    ("export FILES/run-sigma-text --out e", 2, "sigma"),
    ("export FILES/run-sigma-zero --out e --parity-samples 1024", 2, "sigma"),
    ("export FILES/run-data-null --out e", 2, "data"),
    ("import nope --data digits --sigma 0.5 --out i", 2, "nope: no such file"),
    *[(f"import FILES/{name}.pth --data digits --sigma 0.5 --out i", 2, f"{name}.pth")
      for name in ("zero", "random", "folder", "code", "list")],
    ("import FILES/good.npz --data digits --sigma 0.5 --out i", 2, "good.npz"),
    *[(f"import FILES/list.pth --data digits --sigma {value} --out i", 2, "--sigma") for value in ("0", "-1", "nan")],
    ("import FILES/list.pth --data digits --sigma 0.5 --out RUN", 2, "already a run folder"),
    ("import FILES/list.pth", 2, "--data"),
    ("predict EXPORT", 2, "name image files, or a data set"),
    ("predict EXPORT FILES/good.png --data digits", 2, "one of the two"),
    *[(f"predict EXPORT FILES/{name}.png", 2, f"{name}.png") for name in ("zero", "random", "folder", "cut", "nope")],
    ("predict EXPORT FILES/other-size.png", 2, "9 x 9 pixels, expected 8 x 8"),
    ("predict EXPORT FILES/good.npz", 2, "not an image"),
    ("predict EXPORT FILES/good.png --sigma 0", 2, "--sigma 0"),
    ("predict FILES/altered FILES/good.png", 3, "SHA-256"),
    ("predict EXPORT FILES/good.png --device cuda", 4, "--device cpu"),
    ("predict FILES/export-names-short --data digits --stop 5 --n 100", 2, "class_names"),
    ("report nope", 2, "nope: no such file"),
    *[(f"report FILES/{name}.jsonl", 2, f"{name}.jsonl") for name in ("zero", "random", "folder")],
    ("report FILES/good.png", 2, "neither a certificate file nor a table"),
    ("report FILES/zero.jsonl --format pdf", 2, "--format pdf"),
    ("report FILES/zero.jsonl --radii x", 2, "--radii x"),
    ("verify nope", 2, "nope: no such file"),
    ("verify FILES/empty-folder", 2, "cannot be read"),
    ("verify FILES/zero.jsonl", 3, "line 1"),
    ("verify FILES/random.jsonl", 3, "line 1"),
    ("bench nope", 2, "nope: no such file"),
    ("bench FILES/altered", 3, "SHA-256"),
    *[(f"bench EXPORT --batch-sizes {value}", 2, "--batch-sizes") for value in ("0", "x", "-1", "1.5", "''")],
    ("bench EXPORT --engine nope", 2, "known engines"),
    ("bench EXPORT --engine torch", 2, "use --engine ort"),
    ("bench EXPORT --device cuda", 4, "--device cpu"),
    *[(f"bench EXPORT --seconds {value}", 2, "must be positive") for value in ("0", "-1", "nan")],
    ("bench FILES/zero.onnx", 2, "zero.onnx"),
    ("bench FILES/fixed-batch.onnx --batch-sizes 8", 2, "batches of 16 only"),
    ("demo --out FILES/text", 2, "exists"),
    ("demo --out FILES/pictures", 2, "exists"),
    ("doctor extra", 2, "unexpected extra argument"),
    ("recipes --nope", 2, "No such option: --nope"),
    ("nope", 2, "No such command 'nope'"),
]  # fmt: skip


TRAINING = [
    *[(f"--{name} {value}", 2, f"--{name}")
      for name, values in {"sigma": "0 -1 nan inf", "epochs": "0 -1", "batch-size": "0 -1 1", "lr": "0 -1 nan inf",
                           "lr-step": "0", "schedule": "nope", "m": "0 -1", "attack-steps": "-1",
                           "attack-step-size": "0 nan", "eta": "-1 nan", "max-norm": "0 nan",
                           "warmup-epochs": "-1", "lbd": "-1 nan", "beta": "0 nan", "margin": "0 inf"}.items()
      for value in values.split()],
    ("--arch nope", 2, "known: digits-cnn"),
    ("--arch lenet", 2, "does not take images of 1x8x8"),
    ("--arch os:system", 2, "os:system"),
    ("--arch nope:x", 2, "cannot import it"),
    ("--recipe smoothmix-digit", 2, "did you mean smoothmix-digits-0.25"),
    ("--recipe smoothmix-digits-0.25 --method gaussian", 2, "--method gaussian"),
    ("--method nope", 2, "--method nope: unknown"),
    ("--method smoothadv --attack-steps 0", 2, "--attack-steps of at least 1"),
    ("--method macer --epochs 4 --warmup-epochs 4", 2, "--warmup-epochs 0 starts it at once"),
    ("--device cuda", 4, "--device cpu"),
    ("--start 64 --stop 64", 2, "selects none"),
    ("--data npz:FILES/good.npz", 2, "pass --arch"),
    ("--data npz:FILES/good.npz --arch digits-cnn", 2, "--sigma: missing"),
    ("--data npz:FILES/nan.npz --arch digits-cnn --sigma 1", 2, "outside [0, 1]"),
    ("--data npz:FILES/colour.npz --arch digits-cnn --sigma 1", 2, "does not take images of 3x8x8"),
    ("--out FILES/text", 2, "is a file"),
    ("--out FILES/pictures", 2, "not empty and not a run folder"),
    ("--out RUN", 2, "already a run folder"),
    ("--out FILES/state-cut --resume", 2, "--resume"),
    ("--momentum -1", 2, "--momentum"),
    ("--weight-decay -1", 2, "--weight-decay"),
    ("--seed -1", 2, "--seed"),
    ("--seed 99999999999999999999999", 2, "--seed"),
    ("--stop 1", 2, "images"),
    ("--m 65 --stop 64", 2, "images"),
    ("--data folder:FILES/pictures-test-only --arch digits-cnn --sigma 1", 2, "train"),
]  # fmt: skip


CODE = ("code", "--trust-code", "SMX_TRUST_CODE")
"""What is said of a run folder that names code."""

HOSTILE_NETWORKS = [
    *[
        (f"{name}.onnx", "not an ONNX model, or a damaged one")
        for name in ("many-nodes", "deep", "length", "endless-number", "group")
    ],
    *[(f"{name}.onnx", "not a run folder, an export folder, or an .onnx") for name in ("pipe", "device")],
    ("loop.onnx", "loop.onnx"),
    *[(f"dims-{name}.onnx", "a damaged or hostile file") for name in ("huge", "negative", "product", "overflow")],
    ("sparse.onnx", "a damaged or hostile file"),
    ("image-huge.onnx", "image-huge.onnx"),
    ("batch-huge.onnx", "batch-huge.onnx"),
    ("fills-memory.onnx", "memory to run it"),
    *[(f"weights-{name}.onnx", ("outside", "--allow-external-data")) for name in ("parent", "absolute", "missing")],
    *[(f"props-{name}.onnx", "metadata") for name in ("deep", "surrogate", "huge", "digits")],
]

HOSTILE_RUNS = [
    *[(f"evil-{name}", CODE) for name in ("code", "code-beside", "code-escapes")],
    ("evil-hub", "timm's own networks"),
    ("evil-local-dir", "timm's own networks"),
    *[(f"evil-{name}", "num_classes") for name in ("classes", "classes-huge", "shape", "shape-huge")],
    *[(f"evil-{name}", "sigma") for name in ("sigma-infinite", "sigma-nan", "sigma-huge")],
    ("evil-names", "not valid JSON"),
    ("evil-names-numbers", "class_names"),
    *[(f"evil-{name}", "mean_sd") for name in ("mean-huge", "mean-nan")],
    ("evil-hyper", "hyper_parameters"),
    ("evil-epochs", "epochs_completed"),
    *[(f"config-{name}", "not valid JSON") for name in ("utf16", "digits", "nul", "twice")],
    ("config-big", "65 MB"),
    ("config-pipe", "not a file"),
    ("config-loop", "neither a run folder"),
    *[
        (f"tensors-{name}", "not a readable safetensors file")
        for name in (
            "header-long",
            "header-text",
            "header-list",
            "pickle",
            "header-deep",
            "trailing",
            "declared",
            "overlapping",
            "type",
        )
    ],
    ("tensors-other", "do not fit arch"),
]

HOSTILE_EXPORTS = [
    *[
        (f"evil-export-{name}", "manifest.json")
        for name in (
            "absolute",
            "empty",
            "dot",
            "nul",
            "escapes",
            "surrogate",
            "files-list",
            "sigma-nan",
            "precision",
            "max-batch-huge",
            "names",
            "parent",
            "plan",
        )
    ],
    ("evil-export-long", "no SHA-256"),
    ("evil-export-device", "missing"),
]

HOSTILE_DATA = [
    *[
        (f"npz:EVIL/x-{name}.npz", f"x-{name}.npz")
        for name in (
            "huge",
            "negative",
            "overflow",
            "code",
            "object",
            "record",
            "date",
            "complex",
            "text",
            "scalar",
            "magic",
            "deep",
            "float-shape",
            "short",
            "five",
            "empty-side",
            "bomb",
            "encrypted",
            "digits",
        )
    ],
    ("npz:EVIL/device.png", "device.png"),
    ("npz:", "npz"),
    ("folder:", "folder"),
    ("folder:EVIL/pipes", "no images found"),
    ("folder:EVIL/bombs", "decompression bomb"),
    ("folder:EVIL/many-frames", "several frames"),
    ("folder:EVIL/loop.png", "loop.png"),
]

HOSTILE_PICTURES = [
    ("bomb.png", "decompression bomb"),
    *[(f"frames.{suffix}", "several frames") for suffix in ("gif", "png", "tiff", "webp")],
    ("transparent.png", "transparent pixels"),
    ("lab.tiff", "mode LAB"),
    ("deep.png", "more than 8 bits"),
    ("float.tiff", "more than 8 bits"),
    *[
        (f"{name}.png", f"{name}.png")
        for name in ("flat", "empty", "text-bomb", "script", "vector", "pipe", "device", "loop")
    ],
]

HOSTILE_CERTIFICATES = [
    *[
        (f"certs-{name}.jsonl", "line 1")
        for name in (
            "sigma-huge",
            "sigma-nan",
            "n-huge",
            "n-negative",
            "alpha",
            "rule",
            "rule-list",
            "key",
            "classes",
            "rule-parameters",
            "rule-unknown",
            "rule-nan",
            "data",
            "images",
            "skip",
            "version",
            "noise",
            "engine",
            "names",
            "reuse",
            "family",
            "artefact",
            "deep",
            "nul",
            "utf16",
            "bom",
            "no-manifest",
        )
    ],
    *[
        (f"certs-{name}.jsonl", "line 2")
        for name in (
            "index",
            "label",
            "radius-huge",
            "radius-nan",
            "radius-negative",
            "counts-list",
            "counts-huge",
            "counts-class",
            "counts-negative",
            "counts-word",
            "n-line",
            "correct",
            "kind",
            "prediction",
            "twice",
            "two-manifests",
            "blank",
            "latin",
        )
    ],
    ("certs-again.jsonl", "line 5"),
    ("certs-cut.jsonl", "line 4"),
]

HOSTILE_TABLES = [
    *[
        (f"table-{name}.tsv", "line 2")
        for name in (
            "long",
            "nan",
            "infinite",
            "huge",
            "negative",
            "digits",
            "words",
            "short",
            "correct",
            "class",
            "nul",
            "escapes",
        )
    ],
]

HOSTILE = [
    *[(f"certify EVIL/{name} --n 100 --stop 2 --data digits --sigma 0.25 --out c.jsonl", 2, words)
      for name, words in (*HOSTILE_NETWORKS, *HOSTILE_RUNS, *HOSTILE_EXPORTS)],
    *[(f"{command} EVIL/{name} {rest}", 2, words)
      for name, words in (HOSTILE_RUNS[0], HOSTILE_RUNS[1], HOSTILE_RUNS[3], HOSTILE_RUNS[-3], HOSTILE_NETWORKS[0], HOSTILE_NETWORKS[10],
                          HOSTILE_NETWORKS[14], HOSTILE_EXPORTS[0])
      for command, rest in (("export", "--out e --sigma 0.25"), ("predict", "FILES/good.png --sigma 0.25 --n 100"),
                            ("bench", "--batch-sizes 8"))],
    ("audit CERTS --artefact EXPORT --run EVIL/evil-code", 2, CODE),
    ("audit CERTS --artefact EVIL/evil-code --run EVIL/evil-code", 2, "certificates for"),
    ("audit CERTS --artefact EVIL/pipe.onnx", 2, "pipe.onnx"),
    ("verify CERTS --artefact EVIL/evil-code --rerun 1", 3, "these certificates are for"),
    ("verify CERTS --artefact EVIL/many-nodes.onnx --rerun 1", 2, "many-nodes.onnx"),
    *[(f"export EVIL/weights-{name}.onnx --allow-external-data --sigma 0.25 --out e", 2, f"weights-{name}.onnx")
      for name in ("parent", "absolute", "missing", "pipe", "folder", "nul")],
    *[(f"certify EXPORT --n 100 --stop 2 --data {data} --out c.jsonl", 2, words) for data, words in HOSTILE_DATA],
    *[(f"predict EXPORT EVIL/{name} --n 100", 2, words) for name, words in HOSTILE_PICTURES],
    *[(f"verify EVIL/{name}", 3, words) for name, words in HOSTILE_CERTIFICATES],
    *[(f"report EVIL/certs-{name}.jsonl", 2, "line 2") for name in ("index", "radius-nan", "counts-word", "twice")],
    *[(f"report EVIL/certs-{name}.jsonl", 2, "line 1") for name in ("sigma-huge", "deep", "names", "rule-list", "digits")],
    *[(f"audit EVIL/certs-{name}.jsonl --artefact EXPORT --run RUN", 3, "line") for name in ("radius-negative", "noise", "nul")],
    *[(f"report EVIL/{name} --sigma 0.5", 2, words) for name, words in HOSTILE_TABLES],
    ("report /dev/zero", 2, "line 1"),
    *[(f"import EVIL/{name}.pth --data digits --sigma 0.5 --out i", 2, f"{name}.pth") for name in ("code", "raw")],
    ("import EVIL/escapes.pth --data digits --sigma 0.5 --out i", 2, "--arch"),
    ("import EVIL/timm.pth --data digits --sigma 0.5 --out i", 2, "timm's own"),
    ("import EVIL/numbers.pth --data digits --sigma 0.5 --out i", 2, "--arch 5"),
    ("import /dev/null --data digits --sigma 0.5 --out i", 2, "/dev/null"),
    ("train --data digits --method gaussian --sigma 0.25 --epochs 6 --out EVIL/state-code --resume", 2, "not a readable training state"),
    ("train --data digits --arch timm:hf-hub:a/b --epochs 1 --out r", 2, "timm's own"),
    *[(f"report CERTS {options}", 2, words) for options, words in [
        ("--radii nan", "--radii"), ("--radii -1", "--radii"), ("--radii 1,,x", "--radii"), ("--plot x.exe", "--plot"),
        ("--plot FILES/empty-folder", "--plot"), ("--html FILES/empty-folder", "--html"), ("--html FILES/text/x.html", "--html"),
        ("--plot FILES/text/x.png", "--plot")]],
    *[(f"bench EXPORT {options}", 2, words) for options, words in [
        ("--batch-sizes 99999999999999", "--batch-size"), ("--batch-sizes 1e3", "--batch-sizes"), ("--n 0", "--n"),
        ("--cost-per-hour nan", "--cost-per-hour"), ("--cost-per-hour -1", "--cost-per-hour"), ("--plot x.exe", "--plot"),
        ("--out FILES/empty-folder", "--out"), ("--seconds inf", "--seconds")]],
    *[(f"certify EXPORT --stop 2 --out c.jsonl {options}", 2, words) for options, words in [
        ("--n 99999999999999999999", "--n"), ("--rule radius --radius 1e300", "--radius"), ("--rule radius --radius nan", "radius is nan"),
        ("--rule grid --grid 1e-300", "--grid"), ("--rule grid --grid 0", "--grid"), ("--rule anytime --tolerance 0", "--tolerance"),
        ("--rule anytime --tolerance nan", "tolerance is nan"), ("--rule radius", "--radius"), ("--radius 1", "--rule radius"),
        ("--alpha-family 0", "--alpha-family"), ("--alpha-family nan", "--alpha-family"), ("--batch-size 99999999999999", "--batch-size"),   ("--sigma 1e400", "--sigma"),
        ("--n0 99999999999999999999", "--n0"), ("--reuse nope --reuse-artefact RUN", "nope"),
        ("--start 99999999999999999999999", "--start")]],
    *[(f"export RUN --out e {options}", 2, words) for options, words in [
        ("--sigma nan", "--sigma"), ("--sigma 1e400", "--sigma"), ("--max-batch 99999999999999999999", "--max-batch"),
        ("--parity-samples 99999999999999", "--parity-samples"),  ("--mean 1", "is a run folder"),
        ("--engine nope", "nope"), ("--input-shape 1", "--input-shape"), ("--data npz:EVIL/x-huge.npz", "x-huge.npz")]],
    *[(f"audit CERTS --artefact EXPORT --run RUN {options}", 2, words) for options, words in [
        ("--images 0", "--images"), ("--n 0", "--n"), ("--alpha 0", "--alpha"), ("--outside 1", "--outside"), ("--outside nan", "--outside"),
        ("--steps -1", "--steps"), ("--out FILES/text", "exists"), ("--out FILES/empty-folder", "--out"), ("--data npz:EVIL/x-huge.npz", "x-huge.npz")]],
    ("audit CERTS --artefact EXPORT --run EXPORT", 2, "not a run folder"),
    ("audit CERTS --artefact EXPORT", 2, "--run: missing"),
    ("demo --n 1 --out d", 2, "--n 1"),
    ("demo --out FILES/text/d", 2, "text"),
    ("certify EXPORT --out c.jsonl --reuse EVIL/certs-nul.jsonl --reuse-artefact RUN", 3, "line 1"),
    ("verify CERTS --rerun -1", 2, "--rerun -1"),
    ("verify CERTS --rerun 1", 2, "--artefact"),
    ("verify CERTS --reuse-file nope", 2, "nope"),
]  # fmt: skip


def _certify(artefact):
    sigma = "" if "sigma" in artefact or "metadata" in artefact else "--sigma 0.25"
    data = "" if "data" in artefact.rpartition("/")[2] else "--data digits"
    return f"certify {artefact} --n 100 --stop 2 --seed 1 --out c.jsonl {sigma} {data}"


def _certify_with(options):
    out = "" if "--out" in options else "--out c.jsonl"
    n = "" if "--n " in options else "--n 100"
    stop = "" if "--start" in options or "--stop" in options else "--stop 2"
    return f"certify EXPORT {out} {n} {stop} --seed 1 {options}"


def _train_with(options):
    out = "" if "--out" in options else "--out r"
    return f"train --data digits --epochs 1 {out} {options}"


CORPUS = [
    *[(_certify(artefact), code, words) for artefact, code, words in ARTEFACTS],
    *[(f"certify EXPORT --n 100 --seed 1 --out c.jsonl --data {data}", code, words) for data, code, words in DATA],
    *[(_certify_with(options), code, words) for options, code, words in OPTIONS],
    *[(_train_with(options), code, words) for options, code, words in TRAINING],
    *OTHERS,
    *HOSTILE,
]
