"""smx train"""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .terminal import note, print_json, progress_bar, show

NAME = "train"


def command(
    out: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="A named recipe (smx recipes).")] = None,
    data: o.Data = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    start: o.Start = None,
    stop: o.Stop = None,
    skip: o.Skip = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            help="digits-cnn, lenet, cifar-resnet20|32|44|56|110, resnet18|50, timm:NAME, pkg.module:callable.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="smoothmix, gaussian, stability, smoothadv, macer or consistency.")
    ] = None,
    sigma: Annotated[float | None, typer.Option("--sigma", help="Noise level in [0, 1] pixel units.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images loaded at a time.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    lr_step: Annotated[int | None, typer.Option("--lr-step", help="Epochs between drops of the rate.")] = None,
    lr_gamma: Annotated[float | None, typer.Option("--lr-gamma", help="Factor of a drop.")] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="step, cosine or one-cycle.")] = None,
    momentum: Annotated[float | None, typer.Option("--momentum")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay")] = None,
    m: Annotated[int | None, typer.Option("--m", "--num-noise", help="Noise draws an image.")] = None,
    attack_steps: Annotated[int | None, typer.Option("--attack-steps", help="T of the attack.")] = None,
    attack_step_size: Annotated[float | None, typer.Option("--attack-step-size", help="alpha of the attack.")] = None,
    eta: Annotated[
        float | None, typer.Option("--eta", help="Weight of SmoothMix's mix loss, or of Consistency's entropy.")
    ] = None,
    one_step_adversary: Annotated[
        bool | None,
        typer.Option("--one-step-adversary/--no-one-step-adversary", help="Mix from x_1 instead of x."),
    ] = None,
    max_norm: Annotated[
        float | None,
        typer.Option(
            "--max-norm", "--epsilon", help="L2 ball of the attack in [0, 1] pixel units: SmoothAdv's epsilon."
        ),
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option("--warmup-epochs", help="Epochs until the full mix loss or epsilon; before MACER's robust term."),
    ] = None,
    lbd: Annotated[
        float | None, typer.Option("--lbd", help="Weight of the added term of stability, macer, consistency.")
    ] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="MACER: factor of the logits.")] = None,
    margin: Annotated[float | None, typer.Option("--margin", help="MACER: gamma of its paper.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, or bf16: the network's products in bfloat16.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the network; needs a C++ compiler.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    device: o.Device = "auto",
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Compute each optimiser step in K parts: less memory, same result.")
    ] = 1,
    save_every: Annotated[float, typer.Option("--save-every", help="Seconds between saves for --resume.")] = 120.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    probe: Annotated[
        int, typer.Option("--probe", help="Certified accuracy on so many test images after each epoch; 0: none.")
    ] = 0,
    probe_every: Annotated[int, typer.Option("--probe-every", help="Probe every so many epochs, and the last.")] = 1,
    probe_radius: Annotated[
        float | None, typer.Option("--probe-radius", help="At this radius; default: sigma.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to the run folder's tensorboard/.")
    ] = False,
    json: o.Json = False,
) -> None:
    """Train a base classifier with SmoothMix or a baseline of its paper. Under torchrun: data-parallel."""
    import smoothmix_deploy as smx
    from smoothmix_deploy.progress import silent
    from smoothmix_deploy.training.launch import launched

    with progress_bar() if launched().rank == 0 else nullcontext(silent) as progress:
        result = smx.train(
            out=out, recipe=recipe, data=data, data_root=data_root, download=download, start=start, stop=stop,
            skip=skip, arch=arch, method=method, sigma=sigma, epochs=epochs, batch_size=batch_size, lr=lr,
            lr_step=lr_step, lr_gamma=lr_gamma, schedule=schedule, momentum=momentum, weight_decay=weight_decay, m=m,
            attack_steps=attack_steps, attack_step_size=attack_step_size, eta=eta,
            one_step_adversary=one_step_adversary, max_norm=max_norm, warmup_epochs=warmup_epochs, lbd=lbd,
            beta=beta, margin=margin, precision=precision, compile=compile, seed=seed, device=device,
            accumulate=accumulate, save_every=save_every, resume=resume, probe=probe, probe_every=probe_every,
            probe_radius=probe_radius, tensorboard=tensorboard, progress=progress,
        )  # fmt: skip
    if launched().rank:  # process 0 speaks for all
        return
    last = result.metrics
    if json:
        print_json({"path": str(result.path), "epochs": result.epochs, "metrics": last})
        return
    noisy = last.get("noisy_accuracy")
    accuracy = (
        f"{noisy:.1%} of noisy test images right"
        if noisy is not None
        else f"{last['train_accuracy']:.1%} of noisy training images right"
    )
    show(f"{result.path}: {result.epochs} epochs, loss {last['loss']:.3f}, {accuracy}")
    note(f"next: smx export {result.path} --out DIR")
