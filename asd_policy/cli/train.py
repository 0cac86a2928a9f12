"""Train a diffusion policy on demonstrations, or resume a stopped run.

Examples:

    asd-policy train new --data data/square.zarr --out runs/square --steps 40000
    asd-policy train new --data data/square.zarr --out runs/tuned --init square --steps 10000
    asd-policy train new --data low_dim_v15.hdf5 --filter-key train --out runs/human --steps 40000
    asd-policy train new --data lerobot/pusht --out runs/pusht --steps 40000
    asd-policy train new --data data/square.zarr --out runs/attention --steps 40000 --network.name transformer
    asd-policy train resume --out runs/square
    torchrun --nproc-per-node 4 -m asd_policy.cli train new --data data/square.zarr --out runs/square --steps 40000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import tyro
from rich.console import Console

from asd_policy import hub
from asd_policy.cli import COMPLETE, INCOMPLETE, parsing
from asd_policy.cli.training_progress import train_with_progress
from asd_policy.data.formats import pinned
from asd_policy.errors import ConfigError, NumericalError, UnknownNameError
from asd_policy.importers import load_policy
from asd_policy.nets import NETWORKS, Architecture, NetworkConfig
from asd_policy.threads import check_threads
from asd_policy.training.processes import Processes
from asd_policy.training.run import Machine, RunInfo
from asd_policy.training.settings import TrainSettings
from asd_policy.training.start import Prepared, begin, resume
from asd_policy.training.trackers import check_installed

NETWORK_NAME = "--network.name"


@dataclass(frozen=True)
class New:
    """Start a run in a new directory."""

    data: Path
    """Demonstrations: a store, an HDF5 file in robomimic's layout, a replay buffer of real-stanford's (.zarr or
    .zarr.zip), or a LeRobotDataset (a folder, or a repository of the Hugging Face hub such as lerobot/pusht). The
    format is recognised by what is there."""
    out: Path
    """Run directory to make."""
    settings: Annotated[TrainSettings, tyro.conf.arg(name="")]
    episodes: int | None = None
    """Number of episodes to read, from the first on. By default all."""
    held_out: int = 0
    """Reserve this many of the last episodes for validation. The loss of the averaged weights on them is logged with
    each snapshot. It rises when the run overfits."""
    foreseeable: float | None = None
    """Leave out training windows whose expert is disturbed by more than this after the policy's last observation,
    because the policy cannot predict the expert's reaction. For stores collected with --pushes or --closings; 0.2
    ignores white noise of 0.05."""
    filter_key: str | None = None
    """Mask of the HDF5 file that selects demonstrations, such as train."""
    absolute: bool = False
    """Train on the target poses that robomimic's files hold beside their delta actions."""
    clip_actions: bool = False
    """Clip delta actions outside [-1, 1], with a note. Without this option they are an error."""
    obs_keys: tuple[str, ...] = ()
    """Observations of the policy, in this order, such as agentview_image robot0_eef_pos. By default all of a store; of
    an HDF5 file the vectors that robomimic's policies use, or all vectors if it is of another robot; all vectors and
    images of a replay buffer; observation.state, observation.environment_state and observation.images.* of a
    LeRobotDataset."""
    action_key: str | None = None
    """Array of actions. By default `action`, or `actions` in an HDF5 file."""
    env_id: str | None = None
    """Environment of the policy, if the demonstrations do not name it, such as gym_pusht:gym_pusht/PushT-v0."""
    ignore: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Entries of observations to hide from the policy: a key and its indices."""
    quaternions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Quaternions in observations to normalise the sign of: a key and the index of each one's first entry."""
    network: Architecture = field(default_factory=NetworkConfig)
    octaves: int = 0
    """Number of sines and cosines of each observed value in the condition, for tasks that need millimetres; try 4."""
    init: Path | None = None
    """Checkpoint to start from, a path or a Hugging Face hub id: its weights, network and observations. Replaces
    --obs-keys, --ignore, --quaternions and --network; --octaves are added to a U-Net that has none."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


@dataclass(frozen=True)
class Resume:
    """Resume a run from its last saved state."""

    out: Path
    """Run directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


Arguments = New | Resume


def parse(module: Any, argv: Sequence[str], prog: str) -> Arguments:
    """Parse the command's arguments. `--network.name` chooses the network; other --network options set its sizes."""
    name = _network(argv)
    network = ("network", NETWORKS[name], field(default_factory=NETWORKS[name]))
    told = f"{New.__doc__}\n\nThe network is one of {', '.join(NETWORKS)}. Below are the sizes of {name}."
    new: Any = make_dataclass("New", [network], bases=(New,), frozen=True, namespace={"__doc__": told})
    commands: Any = Annotated[new, tyro.conf.subcommand("new")] | Annotated[Resume, tyro.conf.subcommand("resume")]
    return cast(Arguments, parsing.parse(commands, module.__doc__, argv, prog))


def main(arguments: Arguments) -> int:
    """Run the command. Returns 0 if the run is complete, 1 if it was stopped."""
    check_threads(arguments.machine.threads or 1)
    arguments.machine.set_threads()
    check_installed(arguments.machine.track)
    processes = Processes.join(arguments.machine.device)
    console = Console(quiet=not processes.is_first)
    with processes.watched():
        run = prepare(arguments, processes)
    for note in run.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    trainer, info = run.trainer, run.info
    parameters = sum(parameter.numel() for parameter in trainer.net.parameters())
    console.print(
        f"{info.episodes} episodes ({info.held_out} held out), {run.windows} windows, "
        f"{parameters / 1e6:.1f}M parameters, from step {trainer.step} to {info.settings.steps}",
        soft_wrap=True,
    )
    finished = train_with_progress(trainer, arguments.out, console, arguments.machine.track)
    if finished and processes.is_first:
        fit_first_guess(run, arguments.out, console)
    console.print("finished" if finished else f"stopped; resume it with: asd-policy train resume --out {arguments.out}")
    return COMPLETE if finished else INCOMPLETE


def fit_first_guess(run: Prepared, out: Path, console: Console) -> None:
    """Fit the run's first guess, and print its file, or why there is none."""
    try:
        with console.status("fitting the first guess"):
            path = run.keep_first_guess(out)
    except (ConfigError, NumericalError) as error:
        console.print(f"no first guess: {error}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    else:
        console.print(f"first guess: {path}", soft_wrap=True)


def prepare(arguments: Arguments, processes: Processes | None = None) -> Prepared:
    """Make the trainer of a new or resumed run, and the directory of a new run."""
    processes = Processes() if processes is None else processes
    machine = replace(arguments.machine, device=processes.device(arguments.machine.device))
    if isinstance(arguments, Resume):
        return resume(arguments.out, machine, load_policy, processes)
    info = RunInfo(
        data=pinned(arguments.data),
        episodes=arguments.episodes,
        ignored=arguments.ignore,
        init=hub.pinned(str(arguments.init)) if arguments.init else None,
        settings=arguments.settings,
        filter_key=arguments.filter_key,
        absolute=arguments.absolute,
        obs_keys=arguments.obs_keys,
        held_out=arguments.held_out,
        foreseeable=arguments.foreseeable,
        clip_actions=arguments.clip_actions,
        action_key=arguments.action_key,
        env_id=arguments.env_id,
    )
    return begin(
        arguments.out,
        info,
        machine,
        load_policy,
        arguments.network,
        arguments.quaternions,
        arguments.octaves,
        processes,
    )


def _network(argv: Sequence[str]) -> str:
    """The name of the network chosen by the arguments. Raises UnknownNameError if there is none."""
    name = NetworkConfig.name
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        option, given, value = word.partition("=")
        if option == NETWORK_NAME:
            name = value if given else following
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    return name
