"""Settings as dataclass fields that are command-line options, too.

One definition of a field says all there is to know of it: type, default, option, range and help. The parsers of the
commands, the checks of values from a file, and the table in ``docs/options.md`` are made from it.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nnunetv2_pgl.errors import PGLError

MAX_NUMBER = 2**63  # larger ones do not fit torch's integers


@dataclass(frozen=True)
class Option:
    """What a setting says besides its type and its default.

    Attributes:
        help: What it sets, in one phrase.
        group: Heading under which the option is listed; None: the setting has no option.
        name: Name of the option, if it is not that of the field.
        dashes: What the name begins with in messages; the parser takes it with one dash and with two.
        metavar: What stands for the value in the help, or for each of several.
        least: Smallest value, or the smallest of several.
        above: The value, or each of several, must be larger.
        most: Largest value, or the largest of several.
        rising: Whether of two values the second must not be smaller than the first.
        default_text: How the default reads where it is not a plain value.
        values: The words that the option takes, where they are not those of the field's type.
        parse: Makes the value from the texts given; gets the texts and the option's name, for its PGLError.
        one_text: Whether the option takes a single text whatever the field's type, for ``parse``.
    """

    help: str
    group: str | None = None
    name: str | None = None
    dashes: str = "-"
    metavar: str | tuple[str, ...] | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    rising: bool = False
    default_text: str | None = None
    values: tuple[str, ...] | None = None
    parse: Callable[[Any, str], Any] | None = None
    one_text: bool = False

    @property
    def required(self) -> str | None:
        """The range in words; None: every number will do."""
        words = None
        if self.least is not None and self.most is not None:
            words = f"must be from {self.least:g} to {self.most:g}"
        elif self.least == 0:
            words = "must not be negative"
        elif self.least is not None:
            words = f"must be at least {self.least:g}"
        elif self.above is not None:
            words = (
                "must be positive" if self.most is None else f"must be above {self.above:g} and at most {self.most:g}"
            )
        if self.rising:
            return "give two values in rising order" + ("" if words is None else f", which {words}")
        return words

    def allows(self, value: Any) -> bool:
        """Whether a number, or each of several, is in the range; infinity and NaN never are, words always."""
        if isinstance(value, str):
            return True
        numbers = value if isinstance(value, tuple) else (value,)
        return (
            all(math.isfinite(number) for number in numbers)
            and (self.least is None or min(numbers, default=self.least) >= self.least)
            and (self.above is None or min(numbers, default=math.inf) > self.above)
            and (self.most is None or max(numbers, default=self.most) <= self.most)
            and (not self.rising or list(numbers) == sorted(numbers))
        )


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with its `Option`; ``more`` are the attributes of that. Of ``{}`` each object has a copy."""
    metadata = {"option": Option(help, **more)}
    return (
        field(default_factory=dict, metadata=metadata) if default == {} else field(default=default, metadata=metadata)
    )


def option_of(of: Field[Any]) -> Option | None:
    """The option of a dataclass field, if it has one."""
    option: Option | None = of.metadata.get("option")
    return option if option is not None and option.group is not None else None


def flag_of(of: Field[Any]) -> str:
    """The option of a field as a user types it, or the name of a setting that has none."""
    option = of.metadata.get("option")
    return f"{option.dashes}{option.name or of.name}" if option is not None and option.group is not None else of.name


def add_options(
    parser: ArgumentParser,
    settings: Sequence[type],
    groups: Sequence[str],
    default_of: Callable[[type, Field[Any]], str],
) -> None:
    """Adds the options of dataclasses, group by group. Parsed, they have the names of their fields; None: not given.

    Args:
        parser: Gets a group of arguments for each of ``groups``.
        settings: The dataclasses.
        groups: Headings of the options to add, in the order of the help.
        default_of: The default of a field of a dataclass in words, for the help; may be empty.
    """
    for title in groups:
        group = parser.add_argument_group(title)
        for owner in settings:
            hints = get_type_hints(owner)
            for of in fields(owner):
                option = option_of(of)
                if option is not None and option.group == title:
                    name = option.name or of.name
                    arguments = _arguments(option, hints[of.name])
                    if hints[of.name] is not bool and (default := default_of(owner, of)):
                        arguments["help"] += f" (default: {default})".replace("%", "%%")
                    group.add_argument(f"-{name}", f"--{name}", dest=of.name, **arguments)


def given_values(parsed: Namespace, settings: type) -> dict[str, Any]:
    """The settings of a dataclass that were given as options.

    Raises:
        PGLError: Of an option's ``parse``.
    """
    values = {}
    for of in fields(settings):
        value, option = getattr(parsed, of.name, None), option_of(of)
        if option is not None and value is not None:
            if option.parse is not None:
                value = option.parse(value, flag_of(of))
            values[of.name] = tuple(value) if isinstance(value, list) else value
    return values


def require_ranges(settings: Any, usual: Any = None) -> None:
    """Checks the values of a dataclass, and of those in it, against their ranges.

    Args:
        settings: The dataclass.
        usual: One with the values to recommend; None: the defaults of the fields.

    Raises:
        PGLError: Names the option, its value and what is allowed.
    """
    for of in fields(settings):
        value, option = getattr(settings, of.name), of.metadata.get("option")
        default = of.default if usual is None else getattr(usual, of.name)
        if is_dataclass(value):
            require_ranges(value, None if usual is None else default)
        elif option is not None and option.values and value is not None and value not in option.values:
            raise PGLError(f"{flag_of(of)} {value}: must be one of {', '.join(option.values)}")
        elif option is not None and option.required and value is not None and not option.allows(value):
            recommended = "" if default in (None, MISSING) else f" (default: {spelled(default)})"
            raise PGLError(f"{flag_of(of)} {spelled(value)}: {option.required}{recommended}")
        elif isinstance(value, int) and value >= MAX_NUMBER:
            raise PGLError(f"{flag_of(of)} {value}: is too large")


def require_types(settings: Any) -> None:
    """Checks that each field of a dataclass, and of those in it, has the type that is declared: for values of a file.

    Raises:
        TypeError: Names the field and its value.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {str(value)[:80]!r}")


def spelled(value: Any) -> str:
    """A value as it is given to an option."""
    if isinstance(value, tuple):
        return " ".join(map(spelled, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _arguments(option: Option, hint: Any) -> dict[str, Any]:
    """Keyword arguments for argparse's ``add_argument``."""
    arguments: dict[str, Any] = {"help": option.help.replace("%", "%%"), "metavar": option.metavar}
    kinds = [kind for kind in _alternatives(hint) if kind is not NoneType]
    words = words_of(option, hint)
    several = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), None)
    if bool in kinds:
        return {"action": "store_true", "default": None, "help": arguments["help"]}
    if option.one_text:
        return arguments
    if any(get_origin(kind) is Mapping for kind in kinds):
        return arguments | {"nargs": "+"}  # pairs, for ``parse``
    if several is not None:
        is_open = several[-1] is Ellipsis or len(kinds) > 1  # as many as are given, or one in the place of several
        return arguments | {"nargs": "+" if is_open else len(several), "type": str if words else several[0]}
    if words:
        return arguments | {"choices": words}
    return arguments | {"type": kinds[0]}


def words_of(option: Option, hint: Any) -> tuple[str, ...]:
    """The words that an option takes."""
    literals = [kind for kind in _alternatives(hint) if get_origin(kind) is Literal]
    return option.values or tuple(word for kind in literals for word in get_args(kind))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items()
        )
    if hint in (int, float):
        number = int if hint is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool) and -MAX_NUMBER < value < MAX_NUMBER
    if is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
        require_types(value)
    return isinstance(value, hint)
