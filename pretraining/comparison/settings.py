"""What a comparison compares: its settings, which are options of ``pgl_compare``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2_pgl.addresses import is_address
from nnunetv2_pgl.errors import PGLError
from pretraining.comparison.files import read_json, require_name, write_json
from pretraining.data import resolve_source
from pretraining.option_fields import flag_of, setting
from pretraining.settings.values import names_in

GROUPS = ("what is compared", "pre-training", "test set and prediction")  # of the options


def _dataset(text: str, option: str) -> str:
    source = resolve_source(text)
    if not source.is_dataset or not source.name.startswith("Dataset"):
        raise PGLError(f"{option} {text}: give a dataset of nnUNet_raw, as id or DatasetXXX_Name")
    return source.name


def _distinct(values: Iterable[Any], _: str) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _sources(texts: Iterable[str], _: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(resolve_source(text).full_name for text in texts))


def _names(file: str, option: str) -> tuple[str, ...]:
    return names_in(Path(file), option)


def _checkpoints(texts: Iterable[str], option: str) -> dict[str, str]:
    pairs = _definitions(texts, option, "PATH")
    return {name: path if is_address(path) else str(Path(path).expanduser().resolve()) for name, path in pairs.items()}


def _definitions(texts: Iterable[str], option: str, value: str = '"OPTIONS"') -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or not rest.strip():
            raise PGLError(f"{option} {text!r}: give NAME={value}")
        if require_name(name, option) in pairs:
            raise PGLError(f"{option} {name}: given twice")
        pairs[name] = rest
    return pairs


_compared, _pretraining, _test = (partial(setting, group=group, dashes="--") for group in GROUPS)
_short = partial(setting, group=GROUPS[0])
_SHARE: dict[str, Any] = {"metavar": "F", "above": 0, "most": 1}


@dataclass(frozen=True)
class ComparisonSettings:
    """What defines a comparison. The fields are options of ``pgl_compare``."""

    dataset: str = _short(
        MISSING,
        "labelled nnU-Net dataset, id or name; needed unless -o names a comparison",
        name="d",
        metavar="ID",
        parse=_dataset,
    )
    pretrain_on: tuple[str, ...] = _pretraining(
        MISSING, "datasets and folders, without the test cases", metavar="ID", parse=_sources, default_text="that of -d"
    )
    inits: tuple[str, ...] = _compared(
        ("random", "models_genesis", "byol", "pgl", "pgl_nce"),
        "initialisations",
        name="init",
        metavar="NAME",
        parse=_distinct,
    )
    fractions: tuple[float, ...] = _compared(
        (0.2, 0.5, 1.0), "shares of a fold's training cases to train on", parse=_distinct, **_SHARE
    )
    folds: tuple[int, ...] = _compared(
        (0,), "folds of the cross-validation to train", metavar="FOLD", least=0, parse=_distinct
    )
    seeds: int = _compared(
        5, "repetitions, each with other cases in the fractions; the units of intervals and tests", metavar="N", least=1
    )
    trainer: str = _short("nnUNetTrainerPGL", "nnUNetTrainerPGL or a subclass of it", name="tr", metavar="TRAINER")
    configuration: str = _short("3d_fullres", "configuration of the plans", name="c", metavar="CONFIGURATION")
    plans: str = _short("nnUNetPlans", "nnU-Net's plans that all runs share", name="p", metavar="PLANS")
    checkpoints: Mapping[str, str] = _pretraining(
        {},
        "use an encoder that exists, a path or an address",
        name="checkpoint",
        metavar="NAME=PATH",
        parse=_checkpoints,
    )
    definitions: Mapping[str, str] = _pretraining(
        {}, 'an initialisation: short="-m pgl -epochs 50"', name="define", metavar="NAME=OPTIONS", parse=_definitions
    )
    pretrain_options: str = _pretraining(
        "", 'options of all pre-trainings, as in "-epochs 100 -b 32"', metavar="OPTIONS"
    )
    predict_options: str = _test("", 'options of nnUNetv2_predict, as in "--disable_tta"', metavar="OPTIONS")
    test_fraction: float | None = _test(
        None,
        "hold out this share of imagesTr",
        default_text="imagesTs if all of it has labels in labelsTs, else 0.3",
        **_SHARE,
    )
    test_cases: tuple[str, ...] | None = _test(
        None, "hold out the cases named in a text file, one per line", metavar="FILE", one_text=True, parse=_names
    )
    max_validation: int | None = _compared(
        None, "use the first N validation cases of a fold", metavar="N", least=1, default_text="all"
    )
    tolerance: float = _test(1.0, "tolerance of the surface Dice", metavar="MM", least=0)

    @property
    def dataset_id(self) -> str:
        """The number of the dataset, as nnU-Net's commands take it."""
        return str(int(self.dataset[7:10]))

    @classmethod
    def load(cls, path: Path) -> ComparisonSettings:
        """Reads a settings.json.

        Raises:
            PGLError: It is not one of this version.
        """
        content: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read_json(path).items()}
        try:
            return cls(**content)
        except TypeError as error:
            raise PGLError(f"{path}: not the settings of a comparison ({error})") from error

    def save(self, path: Path) -> None:
        """Writes a settings.json."""
        write_json(path, asdict(self))

    def extended(self, given: Mapping[str, Any], where: Path) -> ComparisonSettings:
        """These settings with what was given added: initialisations, fractions, folds, seeds.

        Args:
            given: Settings given on the command line.
            where: The settings' file, for messages.

        Raises:
            PGLError: Another setting differs; the message has both values.
        """
        values = {of.name: getattr(self, of.name) for of in fields(self)}
        for of in fields(self):
            if of.name not in given:
                continue
            old, new, to_compare = values[of.name], given[of.name], {}
            if of.name in ("inits", "fractions", "folds"):
                values[of.name] = _distinct([*old, *new], "")
            elif of.name == "seeds":
                values[of.name] = max(old, new)
            elif of.name in ("checkpoints", "definitions"):
                values[of.name] = {**old, **new}
                # An initialisation that is compared already stays what it was.
                to_compare = {f" {init}": (old.get(init), new[init]) for init in new.keys() & {*old, *self.inits}}
            else:
                to_compare = {"": (old, new)}
            for init, (before, now) in to_compare.items():
                if before != now:
                    raise PGLError(
                        f"{flag_of(of)}{init}: this comparison has {_shown(before)}, you gave {_shown(now)} ({where}); "
                        "leave the option out to continue, or start another comparison with -o (only --init, "
                        "--fractions, --folds, --seeds may grow)"
                    )
        return ComparisonSettings(**values)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        shown = " ".join(map(str, value[:4] if len(value) > 6 else value))
        return f"{shown} ... ({len(value)} in all)" if len(value) > 6 else shown
    return "none" if value in (None, "") else str(value)
