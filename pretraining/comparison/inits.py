"""What a training may start from: random weights, a pre-training to be run, or a checkpoint that exists."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nnunetv2_pgl.addresses import locate, shown
from nnunetv2_pgl.checkpoint import load_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.formats.nnunet import NNUNET
from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.trainers.plans import RANDOM
from pretraining.comparison.derived import DECODER, KINDS, LONGER, SHUFFLED, pretraining_length, require_decoder
from pretraining.comparison.files import ComparisonFolder, file_name, read_json, require_name
from pretraining.comparison.settings import ComparisonSettings
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig, recommended
from pretraining.settings.options import OptionParser, add_pretraining_options, settings_of
from pretraining.training.run_folder import RunFolder

# Options of pgl_pretrain: the recommended settings, and what the paper compares. The ablations are the paper's (table
# 8): views without flips, without crops of other size and place, and without both, so that they differ in intensity
# alone.
BUILT_IN = {
    **{method.name: method.comparison_options for method in METHODS.values()},
    "pgl_no_flips": "--paper -m pgl -flip_probability 0",
    "pgl_no_crops": "--paper -m pgl -scale 1 1 -min_overlap 1",
    "pgl_intensity_only": "--paper -m pgl -flip_probability 0 -scale 1 1 -min_overlap 1",
}
_SAME_NORM = ("-norm", "instance")  # of the recommended settings, so that only the weights differ
_RESERVED = {"datasets": "-d", "name": "-o", "exclude": "-exclude", "resume": "--c"}  # set by the comparison


@dataclass(frozen=True)
class Initialisation:
    """One start.

    Attributes:
        name: As in ``--init``.
        options: Of the pre-training; empty if there is none to run.
        method: Of the pre-training that is to be run.
        given: The checkpoint of ``--checkpoint``, if any.
        address: Where exactly its content is, if it was downloaded.
        network: What its checkpoint is, or will be, for: architecture, norm, centred; None for random.
        kind: Of one made from another, see `derived`; None for the others.
        source: The one that it is made from.
    """

    name: str
    options: tuple[str, ...] = ()
    method: str | None = None
    given: Path | None = None
    address: str | None = None
    network: dict[str, Any] | None = None
    kind: str | None = None
    source: Initialisation | None = None

    @property
    def is_random(self) -> bool:
        """Whether its weights are random."""
        return self.name == RANDOM or self.kind == LONGER

    def run_folder(self, folder: ComparisonFolder) -> RunFolder:
        """The folder of its pre-training."""
        return RunFolder.from_name(f"{folder.name}_{self.name}")

    def named_in_plans(self, folder: ComparisonFolder) -> str | None:
        """What the plans of its runs name: the checkpoint, or the address of one, which is the same on all machines."""
        if self.is_random:
            return None
        origin = self.source if self.source is not None and self.kind != SHUFFLED else self
        return origin.address or str(self.checkpoint(folder))

    def checkpoint(self, folder: ComparisonFolder) -> Path | None:
        """The checkpoint to start from, whether or not it is there yet; None for random."""
        if self.is_random:
            return None
        if self.kind == SHUFFLED:
            return folder.derived(self.name, "pth")
        return self.source.checkpoint(folder) if self.source else self.given or self.run_folder(folder).final


def initialisations(
    settings: ComparisonSettings, addresses: Mapping[str, str] | None = None, *, download: bool = True
) -> list[Initialisation]:
    """All starts of a comparison, checked as far as they can be before anything runs.

    Args:
        settings: Of the comparison.
        addresses: Where exactly the content is that a comparison which is continued has begun with.
        download: Whether checkpoints that are given by address may be downloaded.

    Raises:
        PGLError: A name is unknown, an option of a pre-training is wrong, or a checkpoint cannot be used.
    """
    for option, names in (("--define", settings.definitions), ("--checkpoint", settings.checkpoints)):
        for name in names:
            if name not in settings.inits:
                raise PGLError(f"{option} {name}: add {name} to --init ({' '.join(settings.inits)})")
            if option == "--define" and name in (*BUILT_IN, RANDOM):
                raise PGLError(f"--define {name}: this name is taken; choose another")
    exact = {name: (addresses or {}).get(name, given) for name, given in settings.checkpoints.items()}
    found = {name: _initialisation(name, settings, exact, download) for name in settings.inits if ":" not in name}
    inits = [found[name] if name in found else _derived(name, found) for name in settings.inits]
    of_files: dict[str, str] = {}
    for init in inits:
        if (other := of_files.setdefault(file_name(init.name), init.name)) != init.name:
            raise PGLError(f"--init {other} {init.name}: their files would have the same names; rename one")
    return inits


def random_network(inits: Sequence[Initialisation]) -> dict[str, Any]:
    """The network of the random start: that of the first of the others, so that only the weights differ."""
    return next((init.network for init in inits if init.network is not None), _network_of(recommended()))


def seen_test_cases(init: Initialisation, dataset: str, test: Sequence[str]) -> str | None:
    """A warning if a given checkpoint was, or may have been, pre-trained on test cases; else None.

    A checkpoint has the number of scans left out, the config.json beside it their names; a model of nnU-Net has neither
    and has seen labels. Copies of the data under other names cannot be recognised.
    """
    if init.given is None:
        return None
    pgl = load_checkpoint(init.given).pgl
    if dataset not in (pgl.get("datasets") or ()):
        return None
    if pgl.get("framework") == NNUNET:
        return f"{init.name}: {init.given} was trained with labels of {dataset}, perhaps with those of test cases"
    where = f"{init.name}: {init.given} was pre-trained on {dataset}"
    settings = init.given.with_name("config.json")
    is_of_run = init.address is None and settings.is_file() and "library" not in read_json(settings)  # as pgl_export's
    if is_of_run:
        names = PretrainConfig.load(settings).exclude
        # Scans whose names another source shares have that of the dataset in front.
        unseen = all(case in names or f"{dataset}_{case}" in names for case in test)
        return None if unseen else f"{where}, test cases too"
    left_out = (pgl.get("config") or {}).get("exclude") or 0
    return f"{where}, test cases too" if left_out < len(test) else f"{where}, perhaps on test cases: it lists no names"


def _initialisation(
    name: str, settings: ComparisonSettings, checkpoints: Mapping[str, str], download: bool
) -> Initialisation:
    """A start that is not made from another one."""
    require_name(name, "--init")
    if name == RANDOM:
        return Initialisation(name)
    if name in checkpoints:
        try:
            located = locate(checkpoints[name], download=download)
            architecture = load_checkpoint(located.path).architecture
        except PGLError as error:
            raise PGLError(f"--checkpoint {name}={shown(settings.checkpoints[name])}: {error}") from error
        keys = {"architecture": "name", "norm": "norm", "centred": "centred"}
        network = {key: architecture[value] for key, value in keys.items()}
        return Initialisation(name, given=located.path, address=located.pinned, network=network)
    known = {**BUILT_IN, **settings.definitions}
    if name not in known:
        raise PGLError(
            f"--init {name}: unknown; known are random, {', '.join(BUILT_IN)}, what --define and --checkpoint name, "
            f"and {', '.join(f'{kind}:NAME' for kind in KINDS)}"
        )
    common = shlex.split(settings.pretrain_options)
    asked = _config(common, f"--pretrain_options {settings.pretrain_options!r}", {"method": "-m", **_RESERVED})
    norm = _SAME_NORM if name in BUILT_IN and asked.planned_network is None else ()  # nnU-Net's networks have their own
    options = (*shlex.split(known[name]), *norm, *common)
    config = _config(options, f"{'--define' if name in settings.definitions else '--init'} {name}", _RESERVED)
    return Initialisation(name, options, config.method, network=_network_of(config))


def _derived(name: str, others: Mapping[str, Initialisation]) -> Initialisation:
    """The initialisation that is made from one of the others, refused now and not after the pre-training."""
    kind, _, of = name.partition(":")
    if kind not in KINDS:
        raise PGLError(f"--init {name}: before the colon can be {', '.join(KINDS)}")
    source = others.get(of)
    if source is None or source.is_random:
        known = ", ".join(init.name for init in others.values() if not init.is_random) or "none is"
        raise PGLError(
            f"--init {name}: after the colon goes a pre-training that is compared: {known}"
            if source or of in ("", RANDOM) or ":" in of
            else f"--init {name}: is made from a pre-training that is compared, too; add {of} to --init"
        )
    if source.given:
        if kind == DECODER:
            require_decoder(source.given, f"--init {name}")
        elif kind == LONGER:
            try:
                pretraining_length(source.given)
            except PGLError as error:
                raise PGLError(f"--init {name}: {error}") from error
    elif kind == DECODER and not METHODS[str(source.method)].has_decoder:
        keep = ", ".join(method for method, traits in METHODS.items() if traits.has_decoder)
        raise PGLError(f"--init {name}: {source.method} trains no decoder, only {keep} do; leave it out")
    return Initialisation(name, network=None if kind == LONGER else source.network, kind=kind, source=source)


def _network_of(config: PretrainConfig) -> dict[str, Any]:
    return {"architecture": config.architecture, "norm": config.norm, "centred": True}


class _OptionsOfPretraining(OptionParser):
    """Raises where argparse would print the usage of another command and exit."""

    def error(self, message: str) -> NoReturn:
        raise PGLError(message)


def _config(options: Sequence[str], what: str, reserved: Mapping[str, str]) -> PretrainConfig:
    """The settings of a pre-training, to refuse wrong options now and not after hours."""
    parser = _OptionsOfPretraining(prog="pgl_pretrain", add_help=False)
    add_pretraining_options(parser)
    try:
        arguments = parser.parse_args(list(options))
        for name, option in reserved.items():
            if getattr(arguments, name):
                raise PGLError(f"{option} is set by the comparison; leave it out")
        config = settings_of(arguments)
        check_config(config)
    except ValueError as error:
        raise PGLError(f"{what}: {error}") from error
    return config
